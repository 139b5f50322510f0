"""DoRA (arXiv 2402.09353): a magnitude m for each output feature times a direction, the weight with its LoRA update.

    n = ‖W + s·BA‖ per output feature, no gradient through it (section 4.3 of the paper)
    B̂ = s·B, c = m / n          dB = s·dB̂          dm = Σ G ∘ V / n,   V = (Y - bias) / c

V is formed anew, so that dm holds where m = 0 too. What dropout drops has two readings, with x_d = drop(x):

    "adapter"   the low-rank path (the paper):   Y = c ∘ (x Wᵀ + x_d Aᵀ B̂ᵀ) + bias
    "input"     both paths (PEFT):               Y = c ∘ (x_d Wᵀ + x_d Aᵀ B̂ᵀ) + (x - x_d) Wᵀ + bias
                                                 dx = G W + drop'((Gc - G) W + Q A)

The second is the adapted layer on x_d, plus what dropout took away, seen by the base alone.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from .checks import expect, expect_low_rank, tokens
from .low_rank_linear import dropped, low_rank_linear, low_rank_linear_grad
from .row_norm import row_norm

DoraDropout = Literal["adapter", "input"]


class DoraGrads(NamedTuple):
    """Gradients of `dora_linear`: dx [..., K], dA [r, K], dB [N, r], dmagnitude [N], dbias [N] (None without bias)."""

    dx: Tensor
    dA: Tensor
    dB: Tensor
    dmagnitude: Tensor
    dbias: Tensor | None


def dora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    magnitude: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    dora_dropout: DoraDropout = "adapter",
) -> Tensor:
    """Y [..., N] of x [..., K], weight [N, K], A [r, K], B [N, r], magnitude [N], bias [N].

    mask [..., K], 0 or 1/(1 - p), multiplies x on the low-rank path, and on both paths where dora_dropout is "input".
    All of one dtype, else TypeError or ValueError.
    """
    _check(x, weight, A, B, magnitude, bias, mask, dora_dropout)
    c = (magnitude / row_norm(weight, A, B, scaling).detach()).to(x.dtype)
    if dora_dropout == "adapter":
        return low_rank_linear(x, weight, A, scaling * B, c, bias, mask=mask)
    x_d = dropped(x, mask)
    return low_rank_linear(x_d, weight, A, scaling * B, c, bias) + (x - x_d) @ weight.T


def dora_linear_grad(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    magnitude: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    dora_dropout: DoraDropout = "adapter",
) -> DoraGrads:
    """The gradients of `dora_linear` for the output gradient grad_y [..., N], the norm being a constant."""
    _check(x, weight, A, B, magnitude, bias, mask, dora_dropout)
    n = row_norm(weight, A, B, scaling)
    c = (magnitude / n).to(x.dtype)
    B_hat = scaling * B
    x_d = dropped(x, mask)
    if dora_dropout == "adapter":
        dx, dA, dB_hat, dbias = low_rank_linear_grad(grad_y, x, weight, A, B_hat, c, mask=mask)
        V = low_rank_linear(x, weight, A, B_hat, mask=mask)
    else:
        d_dropped, dA, dB_hat, dbias = low_rank_linear_grad(grad_y, x_d, weight, A, B_hat, c)
        G_W = grad_y @ weight
        dx = G_W + dropped(d_dropped - G_W, mask)
        V = low_rank_linear(x_d, weight, A, B_hat)
    return DoraGrads(
        dx=dx,
        dA=dA,
        dB=scaling * dB_hat,
        dmagnitude=(tokens(grad_y * V).sum(0) / n).to(x.dtype),
        dbias=None if bias is None else dbias,
    )


def _check(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    magnitude: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    dora_dropout: str,
) -> None:
    expect_low_rank(x, weight, A, B, bias, mask)
    expect("magnitude", magnitude, (weight.shape[0],), weight)
    if dora_dropout not in ("adapter", "input"):
        raise ValueError(f'dora_dropout: expected "adapter" or "input", got {dora_dropout!r}')
