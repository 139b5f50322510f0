"""A whole direction of an adapted 4-bit layer in one parallel region: what the ops do one after the other, with the
same bits.

    forward     P = drop(x) Aᵀ, B̂ = B ∘ scale, Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias
    backward    Q, dA, dB, Σ G, Σ G ∘ (Y − bias), dx
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ...ops.by_storage import is_dense
from ...ops.library import in_dtype
from . import four_bit_product, team
from .dropout import dropped
from .factor_lines import Scale, scaled
from .factors import Sums, over_x, sums_over_g
from .four_bit import describe
from .processor import processor
from .project import project

Tensor = torch.Tensor


def suits(x: Tensor, layout: Sequence[int], A: Tensor, *others: Scale | None) -> bool:
    """Whether a call may go this way: some tokens in fp32 or bf16 over a 4-bit weight, all else fp32 and contiguous."""
    if is_dense(layout) or x.dtype not in (torch.float32, torch.bfloat16) or not x.numel() or not A.shape[0]:
        return False
    return all(map(_is_read, (A, *others)))


def _is_read(value: Scale | None) -> bool:
    if not isinstance(value, Tensor) or value.ndim == 0:
        return True
    return value.dtype == torch.float32 and value.is_contiguous()


def forward(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    bias: Tensor | None,
    data: Tensor,
    scales: Sequence[Tensor],
    layout: Sequence[int],
    seed: Tensor | None,
    dropout_p: float,
) -> tuple[Tensor, Tensor]:
    """Y [M, N] in x's dtype and P = drop(x) Aᵀ [M, r]."""
    cpu, x, (number, by_rank) = processor(), x.contiguous(), _parted(scale)
    tokens, rank = x.shape[0], A.shape[0]
    y = x.new_empty(tokens, layout[0])
    P = A.new_empty(tokens, rank)
    projected = x if seed is None else dropped(in_dtype(x, torch.float32), seed, dropout_p)
    key = ("forward", cpu, x.dtype, tokens, rank, *layout, number, c is None, bias is None, seed is None)

    def make() -> None:
        project(projected, A, P, cpu)
        B_hat = scaled(B, by_rank if number is None else number, cpu.lanes)
        four_bit_product.forward_into(y, x, describe(data, list(scales), list(layout)), P, B_hat, c, bias, cpu)

    # one tensor isn't to be found under two names
    other = None if seed is None else projected
    team.again(key, (x, A, B, P, y, data, *scales, by_rank, c, bias, other), make)
    return y, P


class Gradients(NamedTuple):
    """Q [M, r] and dx [M, K] if asked for, dA [r, K], dB [N, r], or dB̂ where the scale has a gradient; Σ G [N] and
    Σ G ∘ (Y − bias) [N] where asked for.
    """

    Q: Tensor | None
    dx: Tensor | None
    dA: Tensor
    dB: Tensor
    sums: Tensor | None
    sums_y: Tensor | None


def backward(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    data: Tensor,
    scales: Sequence[Tensor],
    layout: Sequence[int],
    *,
    seed: Tensor | None,
    dropout_p: float,
    needs_x: bool,
    needs_sums: bool,
    scales_db: bool,
) -> Gradients:
    """The gradients for grad_y [M, N] in x's dtype; with dropout Q instead of dx, which needs the mask."""
    dropout = seed is not None
    if seed is not None:
        x = dropped(in_dtype(x, torch.float32), seed, dropout_p)
    cpu, x, grad_y, (number, by_rank) = processor(), x.contiguous(), grad_y.contiguous(), _parted(scale)
    y = None if y is None else y.contiguous()
    (tokens, columns), (features, rank) = x.shape, B.shape
    dx = grad_y.new_empty(tokens, columns) if needs_x and not dropout else None
    asked_q = A.new_empty(tokens, rank) if needs_x and dropout else None
    d_a, d_b = A.new_empty(rank, columns), B.new_empty(features, rank)
    sums = A.new_zeros(features) if needs_sums else None
    sums_y = None if y is None else A.new_zeros(features)
    asked = needs_x, needs_sums, scales_db, c is None, y is None, bias is None, dropout
    key = ("backward", cpu, grad_y.dtype, tokens, rank, *layout, number, *asked)

    def make() -> None:
        Q = team.kept_matrix("Q", tokens, rank) if asked_q is None else asked_q
        into = Sums(Q, d_b, sums, sums_y)
        factor = by_rank if number is None else number
        lined = sums_over_g(grad_y, P, B, factor, c, y, bias, into, scales_db, cpu)
        if dx is not None:
            four_bit_product.backward_into(dx, grad_y, describe(data, list(scales), list(layout)), c, Q, A, None, cpu)
        # beside dx, where there is one: it needs what that needs
        over_x(x, lined, d_a, meets=dx is None)

    others = (by_rank, c, y, bias, sums, sums_y, dx, asked_q)
    team.again(key, (grad_y, x, P, A, B, d_a, d_b, data, *scales, *others), make)
    return Gradients(asked_q, dx, d_a, d_b, sums, sums_y)


def _parted(scale: Scale) -> tuple[float | None, Tensor | None]:
    """(one number for all ranks, one value a rank [r]): one of them is None."""
    return (None, scale) if isinstance(scale, Tensor) and scale.ndim else (float(scale), None)
