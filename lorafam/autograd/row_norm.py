"""n_j = ‖w_j + b̂_j A‖ with the gradient that DoRA's paper leaves out (arXiv 2402.09353, section 4.3), B̂ = B ∘ scale:

    t = dn / n      dB̂ = t ∘ (W Aᵀ + B̂ A Aᵀ)      dA = (t ∘ B̂)ᵀ W + B̂ᵀ (t ∘ B̂) A

Two products with W of r tokens; V = W + B̂ A is formed of rows that nearly cancel alone. A row whose norm is 0 (at its
floor) has no gradient.
"""

from __future__ import annotations

from typing import Any

import torch

from ..backends.undispatched import call
from ..compat.torch import has_no_value_now
from ..ops.adapted import Scale
from ..ops.by_storage import Storage
from ..ops.library import in_dtype
from ..ops.row_norm import CANCELLATION, NORM_FLOOR, norm_dtype
from . import plain
from .scaled_factor import as_saved, scaled, scaled_grads

Tensor = torch.Tensor


class RowNormFunction(torch.autograd.Function):
    """A [r, K], B [N, r] → n [N] in fp32 (fp64 for a dense fp64 W)."""

    @staticmethod
    def formula(
        A: Tensor,
        B: Tensor,
        scale: Scale,
        weight_squared: Tensor | None,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        """The forward in plain operations."""
        dtype = norm_dtype(data, list(layout))
        V = plain.dense_weight(Storage(data, [*block_scales], [*layout]), dtype) + in_dtype(
            scaled(B, scale), dtype
        ) @ in_dtype(A, dtype)
        total = V.square().sum(1)
        # the root's derivatives at 0 would be NaN
        is_zero = total == 0
        return torch.where(is_zero, NORM_FLOOR, torch.where(is_zero, 1.0, total).sqrt()).clamp(min=NORM_FLOOR)

    @staticmethod
    def forward(
        ctx: Any,
        A: Tensor,
        B: Tensor,
        scale: Scale,
        weight_squared: Tensor | None,
        data: Tensor,
        layout: tuple[int, ...],
        *block_scales: Tensor,
    ) -> Tensor:
        norm = call("row_norm", data, block_scales, layout, A, scaled(B, scale), weight_squared)
        ctx.layout = layout
        ctx.scale, saved_scale = as_saved(scale)
        ctx.save_for_backward(A, B, saved_scale, norm, data, *block_scales)
        return norm

    @staticmethod
    def backward(ctx: Any, grad_norm: Tensor) -> tuple[Tensor | None, ...]:
        A, B, scale, norm, data, *block_scales = ctx.saved_tensors
        scale = ctx.scale if scale is None else scale
        if plain.is_differentiated_again(grad_norm):
            inputs = (A, B, scale, None, data, ctx.layout, *block_scales)
            return plain.gradients(RowNormFunction.formula, inputs, (grad_norm,), ctx.needs_input_grad)
        needs_a, needs_b, needs_scale = ctx.needs_input_grad[:3]
        wide, B_hat = in_dtype(A, norm.dtype), scaled(B, scale)
        t = torch.where(norm > NORM_FLOOR, grad_norm / norm, 0.0)
        gram = wide @ wide.T
        rows = call("lora_linear", wide, data, block_scales, ctx.layout, None, None, None, None).T
        update = B_hat @ gram
        # ‖w_j‖² + Σ b̂² ‖a‖², and V Aᵀ
        parts = norm.square() - ((2 * rows + update) * B_hat).sum(1) + B_hat.square() @ gram.diagonal()
        slopes = rows + update
        lost = norm.square() <= CANCELLATION * parts
        # else the rows where it is so
        whole = has_no_value_now(lost)
        near = torch.arange(len(lost), device=lost.device) if whole else lost.nonzero().flatten()
        V = None
        if whole or len(near):
            V = plain.dense_weight(Storage(data, block_scales, [*ctx.layout]), norm.dtype)[near] + B_hat[near] @ wide
            slopes[near] = V @ wide.T
        dA = dB = dscale = None
        if needs_a:
            scaled_rows = t.unsqueeze(1) * B_hat
            far = scaled_rows if V is None else scaled_rows.index_fill(0, near, 0.0)
            dA = call(
                "lora_linear_grad", far.T.contiguous(), data, block_scales, ctx.layout, None, None, None, None, 0.0
            )
            dA = dA + (B_hat.T @ far) @ wide
            dA = in_dtype(dA if V is None else dA + scaled_rows[near].T @ V, A.dtype)
        if needs_b or needs_scale:
            dB, dscale = scaled_grads(t.unsqueeze(1) * slopes, B, scale, needs_b, needs_scale)
        return dA, dB, dscale, None, None, None, *(None for _ in block_scales)
