"""LoRA (arXiv 2106.09685), rsLoRA (arXiv 2312.03732) and, on a decoded 4-bit weight, QLoRA (arXiv 2305.14314).

    B̂ = s·B, c = 1          s = α/r (LoRA) or α/√r (rsLoRA)          dB = s·dB̂

B̂, c and dB̂ are those of `low_rank_linear`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from .checks import expect_low_rank
from .low_rank_linear import low_rank_linear, low_rank_linear_grad


class LoraGrads(NamedTuple):
    """Gradients of `lora_linear`: dx [..., K], dA [r, K], dB [N, r], dbias [N] (None without a bias)."""

    dx: Tensor
    dA: Tensor
    dB: Tensor
    dbias: Tensor | None


def lora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """Y [..., N] = x Wᵀ + s·drop(x) Aᵀ Bᵀ + bias, of x [..., K], weight [N, K], A [r, K], B [N, r], bias [N].

    mask [..., K], 0 or 1/(1 - p), multiplies x on the low-rank path. All of one dtype, else TypeError or ValueError.
    """
    expect_low_rank(x, weight, A, B, bias, mask)
    return low_rank_linear(x, weight, A, scaling * B, bias=bias, mask=mask)


def grouped_lora_linear(
    x: Tensor,
    weights: Sequence[Tensor],
    As: Sequence[Tensor],
    Bs: Sequence[Tensor],
    scalings: Sequence[float],
    biases: Sequence[Tensor | None] | None = None,
) -> tuple[Tensor, ...]:
    """`lora_linear` of one x for every weight."""
    biases = [None] * len(weights) if biases is None else biases
    return tuple(lora_linear(x, *each) for each in zip(weights, As, Bs, scalings, biases, strict=True))


def lora_linear_grad(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> LoraGrads:
    """The gradients of `lora_linear` for the output gradient grad_y [..., N]."""
    expect_low_rank(x, weight, A, B, bias, mask)
    dx, dA, dB_hat, dbias = low_rank_linear_grad(grad_y, x, weight, A, scaling * B, mask=mask)
    return LoraGrads(dx=dx, dA=dA, dB=scaling * dB_hat, dbias=None if bias is None else dbias)
