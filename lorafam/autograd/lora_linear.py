"""Y = x Wᵀ + drop(x) Aᵀ B̂ᵀ + bias with gradients for x, A, B, scale and bias, where B̂ = B ∘ scale (LoRA, arXiv
2106.09685; AdaLoRA through the scale).

Saved beyond parameters and codes: x (or what it is made of, `remade_input`), P = drop(x) Aᵀ [M, r] and the seed. The
mask is regenerated.
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops.adapted import Adapted, Needs, Scale
from ..ops.by_storage import Storage
from ..ops.library import in_dtype
from . import plain
from .directions import backward, forward
from .remade_input import kept_of
from .scaled_factor import as_saved

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
        *block_scales: Tensor,
    ) -> Tensor:
        """The forward in plain operations."""
        y = plain.frozen_product(x, Storage(data, [*block_scales], [*layout])) + plain.low_rank(
            x, A, B, scale, seed, dropout_p
        )
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
        *block_scales: Tensor,
    ) -> Tensor:
        adapted = Adapted(A, B, scale, None, bias, Storage(data, [*block_scales], [*layout]))
        y, P = forward(x, adapted, seed, dropout_p)
        ctx.dropout_p, ctx.layout = dropout_p, layout
        ctx.scale, saved_scale = as_saved(scale)
        ctx.input, kept = kept_of(x)
        ctx.save_for_backward(*kept, P, A, B, saved_scale, bias, seed, data, *block_scales)
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        one, other, P, A, B, scale, bias, seed, data, *block_scales = ctx.saved_tensors
        x = ctx.input.of(one, other)
        scale = ctx.scale if scale is None else scale
        if plain.is_differentiated_again(grad_y):
            inputs = (x, A, B, scale, bias, seed, ctx.dropout_p, data, ctx.layout, *block_scales)
            return plain.gradients(LoraLinearFunction.formula, inputs, (grad_y,), ctx.needs_input_grad)
        needs = Needs(*ctx.needs_input_grad[:5])
        # the bias is no operand of a backward
        adapted = Adapted(A, B, scale, None, None, Storage(data, block_scales, [*ctx.layout]))
        dx, dA, dB, dscale, _, dbias = backward(grad_y, x, P, adapted, seed, ctx.dropout_p, needs)
        return (
            dx,
            dA if needs.A else None,
            dB,
            dscale,
            dbias.to(bias.dtype) if needs.bias else None,
            None,
            None,
            None,
            None,
            *(None for _ in block_scales),
        )
