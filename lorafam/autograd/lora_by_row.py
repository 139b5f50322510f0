"""Y = x Wᵀ + Σ_a [the row's adapter is a] s_a x A_aᵀ B_aᵀ + bias: every token with an adapter of its own, one product.

The factors of all adapters are one of the sum of their ranks; `mask` [M, Σr] holds s_a where a rank is of the row's
adapter, 0 elsewhere:

    P = (x Aᵀ) ∘ mask      Y = x Wᵀ + P Bᵀ + bias      Q = (G B) ∘ mask      dA = Qᵀ x      dB = Gᵀ P
    dx = G W + Q A      dmask = (x Aᵀ) ∘ (G B)

Saved beyond parameters and codes: x, x Aᵀ and the mask.
"""

from __future__ import annotations

from typing import Any

import torch

from ..backends.undispatched import call
from ..ops.by_storage import Storage
from ..ops.library import accumulate_dtype, in_dtype
from . import plain

Tensor = torch.Tensor


class LoraByRowFunction(torch.autograd.Function):
    """x [M, K], A [Σr, K], B [N, Σr], mask [M, Σr] → Y [M, N] in x's dtype."""

    @staticmethod
    def formula(
        x: Tensor,
        A: Tensor,
        B: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        """The forward in plain operations."""
        y = plain.frozen_product(x, Storage(data, [*block_scales], [*layout]))
        y = y + (in_dtype(x, y.dtype) @ in_dtype(A, y.dtype).T * mask) @ in_dtype(B, y.dtype).T
        return in_dtype(y if bias is None else y + bias, x.dtype)

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B: Tensor,
        mask: Tensor,
        bias: Tensor | None,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        P = call("lora_project", x, A, None, 0.0)
        ctx.layout = layout
        ctx.save_for_backward(x, P, A, B, mask, bias, data, *block_scales)
        return call("lora_linear", x, data, block_scales, layout, P * mask, in_dtype(B, P.dtype), None, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, P, A, B, mask, bias, data, *block_scales = ctx.saved_tensors
        if plain.is_differentiated_again(grad_y):
            inputs = (x, A, B, mask, bias, data, ctx.layout, *block_scales)
            return plain.gradients(LoraByRowFunction.formula, inputs, (grad_y,), ctx.needs_input_grad)
        needs_x, needs_a, needs_b, needs_mask, needs_bias = ctx.needs_input_grad[:5]
        dtype = accumulate_dtype(grad_y.dtype)
        grad_y = grad_y.contiguous()
        wide = in_dtype(grad_y, dtype)
        products = call("lora_project", grad_y, in_dtype(B, dtype).T.contiguous(), None, 0.0)
        Q = products * mask
        return (
            call("lora_linear_grad", grad_y, data, block_scales, ctx.layout, None, Q, A, None, 0.0)
            if needs_x
            else None,
            in_dtype(Q.T @ in_dtype(x, dtype), A.dtype) if needs_a else None,
            in_dtype(wide.T @ (P * mask), B.dtype) if needs_b else None,
            P * products if needs_mask else None,
            wide.sum(0).to(bias.dtype) if needs_bias else None,
            None,
            None,
            *(None for _ in block_scales),
        )
