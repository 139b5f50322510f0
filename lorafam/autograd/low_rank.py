"""U = drop(x) Aᵀ B̂ᵀ alone, for a base module that computes its own product: gradients for x, A, B and scale,
where B̂ = B ∘ scale.

Products with the factors go through the ops with a factor as dense weight: autocast never lowers them.
"""

from __future__ import annotations

from typing import Any

import torch

from ..backends.undispatched import call
from ..ops.adapted import Scale
from ..ops.library import in_dtype
from . import plain
from .remade_input import kept_of
from .scaled_factor import as_saved, scaled, scaled_grads

Tensor = torch.Tensor


class LowRankFunction(torch.autograd.Function):
    """x [M, K], A [r, K], B [N, r] → U [M, N] in fp32 (fp64 for fp64 x)."""

    formula = staticmethod(plain.low_rank)

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, A: Tensor, B: Tensor, scale: Scale, seed: Tensor | None, dropout_p: float
    ) -> Tensor:
        P = call("lora_project", x, A, seed, dropout_p)
        ctx.dropout_p = dropout_p
        ctx.scale, saved_scale = as_saved(scale)
        ctx.input, kept = kept_of(x)
        ctx.save_for_backward(*kept, P, A, B, saved_scale, seed)
        return call("lora_linear", P, in_dtype(scaled(B, scale), P.dtype), [], [], None, None, None, None)

    @staticmethod
    def backward(ctx: Any, grad_u: Tensor) -> tuple[Tensor | None, ...]:
        one, other, P, A, B, scale, seed = ctx.saved_tensors
        x = ctx.input.of(one, other)
        scale = ctx.scale if scale is None else scale
        if plain.is_differentiated_again(grad_u):
            inputs = (x, A, B, scale, seed, ctx.dropout_p)
            return plain.gradients(LowRankFunction.formula, inputs, (grad_u,), ctx.needs_input_grad)
        Q, dA, dB_hat, _, _ = call(
            "lora_factors_grad", grad_u, x, P, scaled(B, scale), None, None, None, None, seed, ctx.dropout_p, False
        )
        dx = None
        if ctx.needs_input_grad[0]:
            dx = call("lora_linear_grad", Q, A.to(Q.dtype), [], [], None, None, None, None, 0.0)
            if seed is not None:
                dx = call("dropout", dx, seed, ctx.dropout_p)
            dx = dx.to(x.dtype)
        dB, dscale = scaled_grads(dB_hat, B, scale, ctx.needs_input_grad[2], ctx.needs_input_grad[3])
        return dx, dA.to(A.dtype), dB, dscale, None, None
