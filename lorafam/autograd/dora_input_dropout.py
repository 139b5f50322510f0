"""DoRA as PEFT applies dropout, to both paths: with x_d = drop(x) and U = x_d Wᵀ + P B̂ᵀ,

    Y = x Wᵀ + bias + (c − 1) ∘ U + P B̂ᵀ
    dm = Σ G ∘ U / n      dx = G W + drop'((Gc − G) W + Q A)

x and x_d go through W in one product, stacked as 2M tokens, so that each weight is decoded once; the backward does the
same. As in PEFT, U is formed from fp32 tokens and kept in fp32. Saved beyond parameters and codes: x, P, the seed and
U.
"""

from __future__ import annotations

from typing import Any

import torch

from ..backends.undispatched import call
from ..ops.adapted import Scale
from ..ops.by_storage import Storage
from ..ops.library import accumulate_dtype, in_dtype
from . import plain
from .remade_input import kept_of
from .scaled_factor import as_saved, scaled, scaled_grads

Tensor = torch.Tensor


class DoraInputDropoutFunction(torch.autograd.Function):
    """x [M, K], A [r, K], B [N, r] with B̂ = B ∘ scale, m and n [N] → Y [M, N] in x's dtype."""

    @staticmethod
    def formula(
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        magnitude: Tensor,
        norm: Tensor,
        bias: Tensor | None,
        seed: Tensor,
        dropout_p: float,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        """The forward in plain operations."""
        wide = in_dtype(x, accumulate_dtype(x.dtype))
        x_d = plain.dropped(wide, seed, dropout_p)
        update = plain.low_rank(x_d, A, B, scale, None, 0.0)
        weight = Storage(data, [*block_scales], [*layout])
        U = plain.frozen_product(x_d, weight) + update
        y = plain.frozen_product(wide, weight) + (magnitude / norm - 1) * U + update
        return in_dtype(y if bias is None else y + bias, x.dtype)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        magnitude: Tensor,
        norm: Tensor,
        bias: Tensor | None,
        seed: Tensor,
        dropout_p: float,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        tokens = x.shape[0]
        wide = in_dtype(x, accumulate_dtype(x.dtype))
        dropped = call("dropout", wide, seed, dropout_p)
        P = call("lora_project", dropped, A, None, 0.0)
        both = torch.cat([wide, dropped])
        product = call("lora_linear", both, data, block_scales, layout, torch.cat([P, P]), scaled(B, scale), None, None)
        U = product[tokens:].clone()
        y = (magnitude / norm - 1) * U + product[:tokens]
        if bias is not None:
            y = y + bias
        ctx.dropout_p, ctx.layout = dropout_p, layout
        ctx.scale, saved_scale = as_saved(scale)
        ctx.input, kept = kept_of(x)
        ctx.save_for_backward(*kept, P, U, A, B, saved_scale, magnitude, norm, bias, seed, data, *block_scales)
        # not y.to(): torch 2.11 loses the gradient of a compiled Function whose last operation returns its input
        return in_dtype(y, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        one, other, P, U, A, B, scale, magnitude, norm, bias, seed, data, *block_scales = ctx.saved_tensors
        x = ctx.input.of(one, other)
        scale = ctx.scale if scale is None else scale
        if plain.is_differentiated_again(grad_y):
            inputs = (x, A, B, scale, magnitude, norm, bias, seed, ctx.dropout_p, data, ctx.layout, *block_scales)
            return plain.gradients(DoraInputDropoutFunction.formula, inputs, (grad_y,), ctx.needs_input_grad)
        needs_x, needs_a, needs_b, needs_scale, needs_m, needs_n, needs_bias = ctx.needs_input_grad[:7]
        sums = needs_m or needs_n
        c = magnitude / norm
        Q, dA, dB_hat, dm, dbias = call(
            "lora_factors_grad",
            grad_y,
            x,
            P,
            scaled(B, scale),
            c,
            U if sums else None,
            None,
            norm if sums else None,
            seed,
            ctx.dropout_p,
            needs_bias,
        )
        dx = None
        if needs_x:
            wide = grad_y.to(Q.dtype)
            both = torch.cat([wide, wide * (c - 1)])
            stacked = torch.cat([torch.zeros_like(Q), Q])
            product = call("lora_linear_grad", both, data, block_scales, ctx.layout, None, stacked, A, None, 0.0)
            whole, dropped = product.tensor_split(2)
            dropped = call("dropout", dropped, seed, ctx.dropout_p)
            dx = (whole + dropped).to(x.dtype)
        return (
            dx,
            dA.to(A.dtype) if needs_a else None,
            *scaled_grads(dB_hat, B, scale, needs_b, needs_scale),
            dm.to(magnitude.dtype) if needs_m else None,
            (-dm * c).to(norm.dtype) if needs_n else None,
            dbias.to(bias.dtype) if needs_bias else None,
            None,
            None,
            None,
            None,
            *(None for _ in block_scales),
        )
