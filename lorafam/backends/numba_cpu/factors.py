"""The gradients of the low-rank factors in two passes: one over G for Q, dB̂ and the column sums, one over x for dA.

    Q = (G ∘ c) B̂    dB̂ = c ∘ Gᵀ P    Σ G    Σ G ∘ (Y − bias)    dA = Qᵀ x

A part is some columns of G, or of x. Ranks lie in registers; each part's share of Q is written apart and the shares are
added in order. fp32 throughout; up to `TOKENS` tokens at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...ops.adapted import Scale
from . import factor_kernels, parallel
from .factor_kernels import COLUMNS, TERMS
from .factor_lines import by_registers, scale_at
from .parallel import address
from .processor import Processor

Tensor = torch.Tensor
TOKENS = 512


def _lanes(rank: int, cpu: Processor) -> int:
    """Of a register of ranks: half of it would be empty."""
    return min(cpu.lanes, 8) if rank <= 8 else cpu.lanes


class Sums(NamedTuple):
    """Where one pass over G leaves what it sums: Q [M, r], dB̂ [N, r] (dB with a scale), and unless None Σ G [N] and
    Σ G ∘ (Y − bias) [N], which are 0 before.
    """

    Q: Tensor
    dB: Tensor
    sums: Tensor | None
    sums_y: Tensor | None


class Lined(NamedTuple):
    """Where Q lies by registers of `lanes` ranks."""

    where: int
    lanes: int


def sums_over_g(
    grad_y: Tensor,
    P: Tensor,
    B: Tensor,
    scale: Scale | None,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    into: Sums,
    scales_db: bool,
    cpu: Processor,
) -> Lined:
    """The pass over grad_y [M, N], in fp32 or bf16 as y [M, N]; the rest fp32, all contiguous. B̂ = B ∘ scale;
    `scales_db` makes dB of dB̂.
    """
    (tokens, features), rank = grad_y.shape, P.shape[1]
    lanes = _lanes(rank, cpu)
    groups = -(-rank // lanes)
    up = by_registers(B, lanes, "B by registers", scale, c)
    down = by_registers(P, lanes, "P by registers", meets=False)
    parts = -(-features // COLUMNS)
    most = min(TOKENS, -(-tokens // lanes) * lanes)
    shares = parallel.kept("shares", 4 * parts * groups * most * lanes).data_ptr()
    # of one whole group of ranks Q lies as the kernels read it
    lined = (
        into.Q.data_ptr() if rank == lanes else parallel.kept("Q by registers", 4 * groups * tokens * lanes).data_ptr()
    )
    scratch = _scratch(groups, lanes)
    narrow, narrow_y = (int(t is not None and t.dtype == torch.bfloat16) for t in (grad_y, y))
    where, step = scale_at(scale) if scales_db else (0, 0)
    for first in range(0, tokens, TOKENS):
        count = min(TOKENS, tokens - first)
        padded = -(-count // lanes) * lanes
        ends = first + count == tokens
        arguments = (
            _row(grad_y, first),
            count,
            features,
            groups,
            up,
            down + 4 * lanes * first,
            shares,
            padded,
            into.dB.data_ptr(),
            rank,
            address(c),
            0 if y is None else _row(y, first),
            address(bias),
            address(into.sums_y),
            address(into.sums),
            first,
            tokens,
            where if ends else 0,
            step if ends else 0,
        )
        parallel.run(factor_kernels.over_g(lanes, narrow, narrow_y), arguments, parts, scratch)
        of_q = (shares, parts, groups, padded, lined + 4 * lanes * first, _row(into.Q, first), count, rank, tokens)
        parallel.run(factor_kernels.add_q_shares(lanes), of_q, -(-count // COLUMNS))
    return Lined(lined, lanes)


def over_x(x: Tensor, lined: Lined, d_a: Tensor, *, meets: bool = True) -> None:
    """dA = Qᵀ x [r, K]; x [M, K] in fp32 or bf16, all contiguous."""
    (tokens, columns), rank = x.shape, d_a.shape[0]
    groups = -(-rank // lined.lanes)
    arguments = (x.data_ptr(), tokens, columns, groups, lined.where, d_a.data_ptr(), rank)
    entry = factor_kernels.over_x(lined.lanes, int(x.dtype == torch.bfloat16))
    parts = -(-columns // COLUMNS) if tokens else 0
    parallel.run(entry, arguments, parts, _scratch(groups, lined.lanes), meets=meets)


def gradients(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    B_hat: Tensor,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    needs_sums: bool,
    cpu: Processor,
) -> tuple[Sums, Tensor]:
    """The sums over G, with dB̂, and dA [r, K], fp32.

    grad_y [M, N], x [M, K] and y [M, N] in fp32 or bf16, the rest fp32, all contiguous.
    """
    (tokens, rank), features = P.shape, grad_y.shape[1]
    # tensors nobody writes where there are no tokens
    new = P.new_empty if tokens else P.new_zeros
    sums = P.new_zeros(features) if needs_sums else None
    into = Sums(P.new_empty(tokens, rank), new(features, rank), sums, None if y is None else P.new_zeros(features))
    d_a = new(rank, x.shape[1])
    with parallel.region():
        over_x(x, sums_over_g(grad_y, P, B_hat, None, c, y, bias, into, False, cpu), d_a)
    return into, d_a


def _scratch(groups: int, lanes: int) -> int:
    return 4 * COLUMNS * (TERMS + 2 + groups * lanes)


def _row(tensor: Tensor, row: int) -> int:
    """The address of a row of a contiguous matrix."""
    return tensor.data_ptr() + row * tensor.shape[1] * tensor.element_size()
