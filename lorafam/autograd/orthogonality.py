"""d = ‖P Pᵀ − I‖_F of each of AdaLoRA's factors, with gradients (arXiv 2303.10512, equation 4).

Saved beyond the factors: d and P Pᵀ − I [r, r].
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops.library import accumulate_dtype, in_dtype
from . import plain

Tensor = torch.Tensor


class OrthogonalityFunction(torch.autograd.Function):
    """Factors A [r, K] (rank_dims 0) and B [N, r] (1) → d [factors]."""

    @staticmethod
    def formula(rank_dims: tuple[int, ...], *factors: Tensor) -> Tensor:
        """The forward in plain operations."""
        distances = []
        for factor, dim in zip(factors, rank_dims, strict=True):
            P = in_dtype(factor.T if dim else factor, accumulate_dtype(factor.dtype))
            distances.append(torch.linalg.matrix_norm(P @ P.T - torch.eye(len(P), dtype=P.dtype, device=P.device)))
        return torch.stack(distances)

    @staticmethod
    def forward(ctx: Any, rank_dims: tuple[int, ...], *factors: Tensor) -> Tensor:
        distances, deviations = torch.ops.lorafam.adalora_penalty(factors, rank_dims)
        ctx.rank_dims = rank_dims
        ctx.save_for_backward(distances, deviations, *factors)
        return distances

    @staticmethod
    def backward(ctx: Any, grad_distances: Tensor) -> tuple[Tensor | None, ...]:
        distances, deviations, *factors = ctx.saved_tensors
        if plain.is_differentiated_again(grad_distances):
            inputs = (ctx.rank_dims, *factors)
            return plain.gradients(OrthogonalityFunction.formula, inputs, (grad_distances,), ctx.needs_input_grad)
        grads = torch.ops.lorafam.adalora_penalty_grad(factors, ctx.rank_dims, distances, deviations, grad_distances)
        return None, *(grad.to(factor.dtype) for grad, factor in zip(grads, factors, strict=True))
