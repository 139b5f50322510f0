"""Y = x Wᵀ + drop(x) Aᵀ B̂ᵀ + bias with gradients for x, A, B, scale and bias, where B̂ = B ∘ scale (LoRA, arXiv
2106.09685; AdaLoRA through the scale).

Saved beyond parameters and codes: x (or what it is made of, `remade_input`), P = drop(x) Aᵀ [M, r] and the seed. The
mask is regenerated.
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops.library import in_dtype
from . import plain
from .directions import backward, forward
from .remade_input import kept_of
from .scaled_factor import Scale, as_saved

Tensor = torch.Tensor


class LoraLinearFunction(torch.autograd.Function):
    """x [M, K], A [r, K], B [N, r] → Y [M, N] in x's dtype."""

    @staticmethod
    def formula(
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        bias: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
        data: Tensor,
        layout: tuple[int, ...],
        *scales: Tensor,
    ) -> Tensor:
        """The forward in plain operations."""
        y = plain.frozen_product(x, data, layout, scales) + plain.low_rank(x, A, B, scale, seed, dropout_p)
        return in_dtype(y if bias is None else y + bias, x.dtype)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        bias: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
        data: Tensor,
        layout: tuple[int, ...],
        *scales: Tensor,
    ) -> Tensor:
        y, P = forward(x, A, B, scale, None, bias, seed, dropout_p, data, layout, scales)
        ctx.dropout_p, ctx.layout = dropout_p, layout
        ctx.scale, saved_scale = as_saved(scale)
        ctx.input, kept = kept_of(x)
        ctx.save_for_backward(*kept, P, A, B, saved_scale, bias, seed, data, *scales)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        one, other, P, A, B, scale, bias, seed, data, *scales = ctx.saved_tensors
        x = ctx.input.of(one, other)
        scale = ctx.scale if scale is None else scale
        if plain.is_differentiated_again(grad_y):
            inputs = (x, A, B, scale, bias, seed, ctx.dropout_p, data, ctx.layout, *scales)
            return plain.gradients(LoraLinearFunction.formula, inputs, (grad_y,), ctx.needs_input_grad)
        needs_x, needs_a, needs_b, needs_scale, needs_bias = ctx.needs_input_grad[:5]
        dx, dA, dB, dscale, _, dbias = backward(
            grad_y,
            x,
            P,
            A,
            B,
            scale,
            None,
            None,
            None,
            None,
            seed,
            ctx.dropout_p,
            data,
            ctx.layout,
            scales,
            needs_x=needs_x,
            needs_b=needs_b,
            needs_scale=needs_scale,
            needs_bias=needs_bias,
        )
        return (
            dx,
            dA if needs_a else None,
            dB,
            dscale,
            dbias.to(bias.dtype) if needs_bias else None,
            None,
            None,
            None,
            None,
            *(None for _ in scales),
        )
