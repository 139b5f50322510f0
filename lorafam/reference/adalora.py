"""AdaLoRA (arXiv 2303.10512), the update as a singular value decomposition B diag(E) A.

    B̂ = t·B diag(E), c = 1          t = s / (rank_num + 1e-5)
    dB = t·dB̂ ∘ Eᵀ                  dE = t·Σ dB̂ ∘ B over output features

s is α, not α/r, and rank_num the initial rank, which pruning doesn't change (as in PEFT). At rank 0 the update is 0.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .checks import expect, expect_low_rank
from .low_rank_linear import low_rank_linear, low_rank_linear_grad

RANK_NUM_EPSILON = 1e-5


class AdaLoraGrads(NamedTuple):
    """Gradients of `adalora_linear`: dx [..., K], dA [r, K], dE [r, 1], dB [N, r], dbias [N] (None without a bias)."""

    dx: Tensor
    dA: Tensor
    dE: Tensor
    dB: Tensor
    dbias: Tensor | None


def adalora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    E: Tensor,
    B: Tensor,
    scaling: float,
    rank_num: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Y [..., N] = x Wᵀ + t·drop(x) Aᵀ diag(E) Bᵀ + bias, of x [..., K], weight [N, K], A [r, K], E [r, 1], B [N, r].

    mask [..., K], 0 or 1/(1 - p), multiplies x on the low-rank path. All of one dtype, else TypeError or ValueError.
    """
    expect_low_rank(x, weight, A, B, bias, mask)
    expect("E", E, (A.shape[0], 1), weight)
    B_hat = scaling / (rank_num + RANK_NUM_EPSILON) * B * E.T
    return low_rank_linear(x, weight, A, B_hat, bias=bias, mask=mask)


def adalora_linear_grad(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    E: Tensor,
    B: Tensor,
    scaling: float,
    rank_num: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> AdaLoraGrads:
    """The gradients of `adalora_linear` for the output gradient grad_y [..., N]."""
    expect_low_rank(x, weight, A, B, bias, mask)
    expect("E", E, (A.shape[0], 1), weight)
    t = scaling / (rank_num + RANK_NUM_EPSILON)
    dx, dA, dB_hat, dbias = low_rank_linear_grad(grad_y, x, weight, A, t * B * E.T, mask=mask)
    return AdaLoraGrads(
        dx=dx,
        dA=dA,
        dE=t * (dB_hat * B).sum(0).unsqueeze(1),
        dB=t * dB_hat * E.T,
        dbias=None if bias is None else dbias,
    )
