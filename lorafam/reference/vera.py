"""VeRA (arXiv 2310.11454): frozen random A and B that all layers share, and two trained vectors.

B̂ = diag(b) B diag(d), c = 1
db = Σ dB̂ ∘ B diag(d) over ranks                  dd = Σ dB̂ ∘ diag(b) B over output features
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .checks import expect, expect_low_rank, tokens
from .low_rank_linear import dropped, low_rank_linear, low_rank_linear_grad


class VeraGrads(NamedTuple):
    """Gradients of `vera_linear`: dx [..., K], dd [r], db [N], dbias [N] (None without a bias)."""

    dx: Tensor
    dd: Tensor
    db: Tensor
    dbias: Tensor | None


def vera_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    d: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Y [..., N] = x Wᵀ + b ∘ (B (d ∘ (A drop(x)))) + bias, of x [..., K], weight [N, K], A [r, K], B [N, r].

    mask [..., K], 0 or 1/(1 - p), multiplies x on the low-rank path. All of one dtype, else TypeError or ValueError.
    """
    return low_rank_linear(x, weight, A, _b_hat(x, weight, A, B, d, b, bias, mask), bias=bias, mask=mask)


def vera_linear_grad(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    d: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> VeraGrads:
    """The gradients of `vera_linear` for the output gradient grad_y [..., N]; A and B are frozen."""
    b_hat = _b_hat(x, weight, A, B, d, b, bias, mask)
    dx, _, dB_hat, dbias = low_rank_linear_grad(grad_y, x, weight, A, b_hat, mask=mask)
    update = dropped(x, mask) @ A.T * d @ B.T
    return VeraGrads(
        dx=dx,
        dd=(dB_hat * B * b[:, None]).sum(0),
        db=tokens(grad_y * update).sum(0),
        dbias=None if bias is None else dbias,
    )


def _b_hat(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    d: Tensor,
    b: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    expect_low_rank(x, weight, A, B, bias, mask)
    expect("d", d, (A.shape[0],), weight)
    expect("b", b, (weight.shape[0],), weight)
    return b[:, None] * B * d
