"""AdaLoRA's distances from orthogonality and their gradients in plain PyTorch, a product a factor."""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype

Tensor = torch.Tensor


@torch.no_grad()
def adalora_penalty(factors: list[Tensor], rank_dims: list[int]) -> tuple[Tensor, Tensor]:
    deviations = []
    for P in _by_rank(factors, rank_dims):
        deviation = P @ P.T
        deviation.diagonal().sub_(1.0)
        deviations.append(deviation)
    distances = torch.stack([torch.linalg.matrix_norm(deviation) for deviation in deviations])
    return distances, torch.cat([deviation.reshape(-1) for deviation in deviations])


@torch.no_grad()
def adalora_penalty_grad(
    factors: list[Tensor], rank_dims: list[int], distances: Tensor, deviations: Tensor, grad_distances: Tensor
) -> list[Tensor]:
    wide = _by_rank(factors, rank_dims)
    scales = torch.where(distances > 0, 2.0 * grad_distances / distances, 0.0)
    parts = deviations.split([len(P) ** 2 for P in wide])
    grads = []
    for P, dim, part, scale in zip(wide, rank_dims, parts, scales, strict=True):
        grad = (part.view(len(P), len(P)) @ P).mul_(scale)
        grads.append(grad.T.contiguous() if dim else grad)
    return grads


def _by_rank(factors: list[Tensor], rank_dims: list[int]) -> list[Tensor]:
    """Each factor as P [r, L], in the dtype of sums."""
    wide = [factor.to(accumulate_dtype(factor.dtype)) for factor in factors]
    return [factor.T if dim else factor for factor, dim in zip(wide, rank_dims, strict=True)]
