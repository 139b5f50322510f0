"""Y = x Wᵀ + bias on the frozen base weight alone: dx = G W, dbias = Σ G. The weight is the decoded one."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .checks import expect, expect_tokens, tokens


class LinearGrads(NamedTuple):
    """Gradients of `nf4_linear`: dx [..., K], dbias [N] (None without a bias)."""

    dx: Tensor
    dbias: Tensor | None


def nf4_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Y [..., N] of x [..., K], weight [N, K], bias [N]."""
    expect_tokens(x, weight, bias)
    y = x @ weight.T
    return y if bias is None else y + bias


def nf4_linear_grad(grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearGrads:
    """The gradients of `nf4_linear` for the output gradient grad_y [..., N]."""
    expect_tokens(x, weight, bias)
    expect("grad_y", grad_y, (*x.shape[:-1], weight.shape[0]), weight)
    return LinearGrads(dx=grad_y @ weight, dbias=None if bias is None else tokens(grad_y).sum(0))
