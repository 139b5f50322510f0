"""n_j = ‖w_j + b̂_j A‖ with the gradient that DoRA's paper leaves out (arXiv 2402.09353, section 4.3), B̂ = B ∘ scale:

    t = dn / n      dB̂ = t ∘ (W Aᵀ + B̂ A Aᵀ)      dA = (t ∘ B̂)ᵀ W + B̂ᵀ (t ∘ B̂) A

Two products with W of r tokens; W + B̂ A is never formed. A row whose norm is 0 (at its floor) has no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

from ..backends.direct import call
from ..ops.library import in_dtype
from ..ops.row_norm import NORM_FLOOR
from .scaled_factor import Scale, as_saved, scaled, scaled_grads

Tensor = torch.Tensor


class RowNorm(torch.autograd.Function):
    """A [r, K], B [N, r] → n [N] in fp32 (fp64 for a dense fp64 W)."""

    @staticmethod
    def forward(
        ctx: Any,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        weight_squared: Tensor | None,
        data: Tensor,
        layout: tuple[int, ...],
        *scales: Tensor,
    ) -> Tensor:
        norm = call("row_norm", data, scales, layout, A, scaled(B, scale), weight_squared)
        ctx.layout = layout
        ctx.scale, saved_scale = as_saved(scale)
        ctx.save_for_backward(A, B, saved_scale, norm, data, *scales)
        return norm

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_norm: Tensor) -> tuple[Tensor | None, ...]:
        A, B, scale, norm, data, *scales = ctx.saved_tensors
        scale = ctx.scale if scale is None else scale
        needs_a, needs_b, needs_scale = ctx.needs_input_grad[:3]
        wide, B_hat = in_dtype(A, norm.dtype), scaled(B, scale)
        t = torch.where(norm > NORM_FLOOR, grad_norm / norm, 0.0)
        scaled_rows = t.unsqueeze(1) * B_hat
        dA = None
        if needs_a:
            rows = scaled_rows.T.contiguous()
            dA = call("lora_linear_grad", rows, data, scales, ctx.layout, None, None, None, None, 0.0)
            dA = in_dtype(dA + (B_hat.T @ scaled_rows) @ wide, A.dtype)
        dB = dscale = None
        if needs_b or needs_scale:
            rows = call("lora_linear", wide, data, scales, ctx.layout, None, None, None, None).T
            dB_hat = t.unsqueeze(1) * (rows + B_hat @ (wide @ wide.T))
            dB, dscale = scaled_grads(dB_hat, B, scale, needs_b, needs_scale)
        return dA, dB, dscale, None, None, None, *(None for _ in scales)
