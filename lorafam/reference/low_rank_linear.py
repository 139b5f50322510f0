"""The one formula of the family, and its gradient. The methods differ only in what B̂ and c are.

    P = drop(x) Aᵀ                                        [..., r]
    Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias                          [..., N]     c [N] scales output features, 1 where not given

With G = dY, Gc = G ∘ c, and sums over the tokens:

    Q = Gc B̂                     dB̂ = Gcᵀ P               dA = Qᵀ drop(x)
    dx = Gc W + drop'(Q A)       dbias = Σ G

drop multiplies by the mask, and so does drop'. c is a constant here: DoRA detaches its norm and treats dm itself.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .checks import expect, expect_low_rank, tokens


class LowRankGrads(NamedTuple):
    """Gradients of `low_rank_linear`: dx [..., K], dA [r, K], dB_hat [N, r], dbias [N]."""

    dx: Tensor
    dA: Tensor
    dB_hat: Tensor
    dbias: Tensor


def dropped(x: Tensor, mask: Tensor | None) -> Tensor:
    """drop(x): x itself without a mask."""
    return x if mask is None else x * mask


def low_rank_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B_hat: Tensor,
    c: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Y [..., N] of x [..., K], weight [N, K], A [r, K], B_hat [N, r], c [N], bias [N], mask [..., K].

    The mask holds 0 or 1/(1 - p) and touches the low-rank path only. All of one dtype, else TypeError or ValueError.
    """
    expect_low_rank(x, weight, A, B_hat, bias, mask)
    expect("c", c, (weight.shape[0],), weight)
    y = x @ weight.T + dropped(x, mask) @ A.T @ B_hat.T
    if c is not None:
        y = c * y
    return y if bias is None else y + bias


def low_rank_linear_grad(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B_hat: Tensor,
    c: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> LowRankGrads:
    """The gradients of `low_rank_linear` for the output gradient grad_y [..., N]."""
    expect_low_rank(x, weight, A, B_hat, None, mask)
    expect("c", c, (weight.shape[0],), weight)
    expect("grad_y", grad_y, (*x.shape[:-1], weight.shape[0]), weight)
    x_d = tokens(dropped(x, mask))
    G = tokens(grad_y)
    Gc = G if c is None else G * c
    P = x_d @ A.T
    Q = Gc @ B_hat
    dx = (Gc @ weight).view(x.shape) + dropped((Q @ A).view(x.shape), mask)
    return LowRankGrads(dx=dx, dA=Q.T @ x_d, dB_hat=Gc.T @ P, dbias=G.sum(0))
