"""n_j = ‖w_j + s·b_j A‖₂ for each output feature j: DoRA's norm (the paper's column norm of Wᵀ), in fp32 or fp64.

Directly, or without the dense N x K update, by the identity, with b̂ = s·b:

    n_j² = ‖w_j‖² + 2 b̂_j·(A w_j) + b̂_j (A Aᵀ) b̂_jᵀ

The identity subtracts: rows where it leaves no more than CANCELLATION of ‖w_j‖² + Σ_r b̂_jr² ‖a_r‖², the squares of
what is added up, have lost digits and are formed directly (docs/decisions/ has the bound). Both are at least
NORM_FLOOR, so that a zero row gives neither inf nor NaN in m / n.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import expect_factors

CANCELLATION = 0.5
NORM_FLOOR = 1e-20


def row_norm(weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """n [N] of weight [N, K], A [r, K], B [N, r], formed directly; fp64 for fp64 arguments, else fp32."""
    expect_factors(weight, A, B)
    weight, A, B = _widened(weight, A, B)
    return _direct(weight, A, scaling * B).clamp(min=NORM_FLOOR)


def row_norm_factored(weight: Tensor, A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """The same n [N] by the identity: a pass of rank r over the weight, W + s·BA only for rows that nearly cancel."""
    expect_factors(weight, A, B)
    weight, A, B = _widened(weight, A, B)
    B_hat = scaling * B
    weight_squared = weight.square().sum(1)
    cross = (B_hat * (weight @ A.T)).sum(1)
    gram = A @ A.T
    update_squared = (B_hat @ gram * B_hat).sum(1)
    squared = weight_squared + 2 * cross + update_squared
    parts = weight_squared + B_hat.square() @ gram.diagonal()
    lost = (squared <= CANCELLATION * parts).nonzero().squeeze(1)
    # Lost rows pass the root as 1: at 0 or below, its derivative would turn their gradient into NaN.
    norm = squared.index_fill(0, lost, 1).sqrt().index_copy(0, lost, _direct(weight[lost], A, B_hat[lost]))
    return norm.clamp(min=NORM_FLOOR)


def _direct(weight: Tensor, A: Tensor, B_hat: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight + B_hat @ A, dim=1)


def _widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.to(torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors)
