"""The gradients of the low-rank factors in two passes: one over G for Q, dB̂ and the column sums, one over x for dA.

    Q = (G ∘ c) B̂    dB̂ = c ∘ Gᵀ P    Σ G    Σ G ∘ (Y − bias)    dA = Qᵀ x

A part is some columns of G, or of x. Ranks lie in registers; each part's share of Q is written apart and the shares are
added in order. fp32 throughout; up to `TOKENS` tokens at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from . import team
from .arrange import write_rows, write_scaled
from .compiled import compiled
from .factor_lines import Scale, by_registers, scale_at
from .memory import clear, load_float, store_float, value_at
from .multiply import add_tile
from .multiply_dense import add_shares
from .processor import Processor
from .team import address, argument, my_scratch, next_part

Tensor = torch.Tensor
TOKENS = 512
_COLUMNS = 128
# tokens that are widened at a time
_TERMS = 128
# terms of a product, and of a sum, that are added up apart
_PIECE, _ROWS = 32, 16


@njit
def _widen(source: int, row_length: int, rows: int, columns: int, narrow: int, out: int) -> None:
    """fp32 [rows, _COLUMNS] of a part of fp32 or bf16 rows."""
    for row in range(rows):
        for column in range(columns):
            store_float(out + 4 * (row * _COLUMNS + column), value_at(source, row * row_length + column, narrow))


@njit
def _add_columns(total: int, block: int, rows: int, columns: int, level: int) -> None:
    """total [columns] += Σ over the rows of a block, in sums of sums."""
    few = level + 4 * _COLUMNS
    clear(level, _COLUMNS)
    for first in range(0, rows, _ROWS):
        clear(few, _COLUMNS)
        for row in range(first, min(first + _ROWS, rows)):
            for column in range(columns):
                to = few + 4 * column
                store_float(to, load_float(to) + load_float(block + 4 * (row * _COLUMNS + column)))
        for column in range(columns):
            store_float(level + 4 * column, load_float(level + 4 * column) + load_float(few + 4 * column))
    for column in range(columns):
        store_float(total + 4 * column, load_float(total + 4 * column) + load_float(level + 4 * column))


@njit
def _add_by_columns(
    products: int, block: int, factors: int, columns: int, rows: int, row_bytes: int, lanes: int
) -> None:
    """products [columns, lanes] += blockᵀ · factors [rows, lanes] for a block [rows, _COLUMNS]."""
    for column in range(0, columns, lanes):
        for row in range(0, rows, _PIECE):
            add_tile(
                products + 4 * lanes * column,
                block + row * row_bytes + 4 * column,
                4,
                row_bytes,
                factors + 4 * lanes * row,
                min(_PIECE, rows - row),
                lanes,
                lanes,
                1,
                0,
            )


@compiled
def _over_g(lanes: int, narrow: int, narrow_y: int, sources: int):
    line, row_bytes = 4 * lanes, 4 * _COLUMNS
    size = 2 if narrow else 4
    size_y = 2 if narrow_y else 4

    def kernel(data: int) -> None:
        grad, tokens, features, rank_groups = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        b_hat, p, shares, padded = argument(data, 4), argument(data, 5), argument(data, 6), argument(data, 7)
        d_b, rank, c = argument(data, 8), argument(data, 9), argument(data, 10)
        y, bias, sums_y, sums = argument(data, 11), argument(data, 12), argument(data, 13), argument(data, 14)
        before, of_group = argument(data, 15), argument(data, 16)
        scale, scale_step = argument(data, 17), argument(data, 18)
        block = my_scratch(data)
        level = block + 4 * _COLUMNS * _TERMS
        products = level + 8 * _COLUMNS
        part = next_part(data)
        while part >= 0 and sources:
            first = part * _COLUMNS
            columns = min(_COLUMNS, features - first)
            clear(products, rank_groups * _COLUMNS * lanes)
            for token in range(0, tokens, _TERMS):
                count = min(_TERMS, tokens - token)
                at = token * features + first
                _widen(grad + size * at, features, count, columns, narrow, block)
                for group in range(rank_groups):
                    share = shares + line * ((part * rank_groups + group) * padded + token)
                    clear(share, (count + lanes - 1) // lanes * lanes * lanes)
                    for row in range(0, count, lanes):
                        for column in range(0, columns, _PIECE):
                            add_tile(
                                share + row * line,
                                block + 4 * (row * _COLUMNS + column),
                                row_bytes,
                                4,
                                b_hat + line * (group * features + first + column),
                                min(_PIECE, columns - column),
                                lanes,
                                lanes,
                                1,
                                0,
                            )
                    into = products + line * group * _COLUMNS
                    _add_by_columns(
                        into, block, p + line * (group * of_group + token), columns, count, row_bytes, lanes
                    )
                if sums:
                    _add_columns(sums + 4 * first, block, count, columns, level)
                if sums_y:
                    for row in range(count):
                        for column in range(columns):
                            value = value_at(y + size_y * (at + row * features), column, narrow_y)
                            if bias:
                                value -= load_float(bias + 4 * (first + column))
                            to = block + 4 * (row * _COLUMNS + column)
                            store_float(to, load_float(to) * value)
                    _add_columns(sums_y + 4 * first, block, count, columns, level)
            for column in range(columns):
                factor = load_float(c + 4 * (first + column)) if c else np.float32(1)
                row = d_b + 4 * (first + column) * rank
                for group in range(rank // lanes):
                    at = products + line * (group * _COLUMNS + column)
                    scale_here = scale + scale_step * group * lanes
                    write_scaled(at, factor, row + line * group, before, scale_here, scale_step, lanes)
                for i in range(rank // lanes * lanes, rank):
                    value = load_float(products + line * (i // lanes * _COLUMNS + column) + 4 * (i % lanes)) * factor
                    if before:
                        value += load_float(row + 4 * i)
                    if scale:
                        value *= load_float(scale + scale_step * i)
                    store_float(row + 4 * i, value)
            part = next_part(data)

    return kernel


@compiled
def _add_shares(lanes: int, sources: int):
    line = 4 * lanes

    def kernel(data: int) -> None:
        shares, parts, rank_groups, padded = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        by_lanes, q, tokens, rank = argument(data, 4), argument(data, 5), argument(data, 6), argument(data, 7)
        of_group = argument(data, 8)
        part = next_part(data)
        while part >= 0 and sources:
            last = min((part + 1) * _COLUMNS, tokens)
            for group in range(rank_groups):
                for token in range(part * _COLUMNS, last):
                    to = by_lanes + line * (group * of_group + token)
                    at = shares + line * (group * padded + token)
                    add_shares(at, line * rank_groups * padded, parts, 0, 0, 0, 0, 0, to, lanes, 1, 0)
                    if q != by_lanes:
                        for i in range(min(lanes, rank - group * lanes)):
                            store_float(q + 4 * (token * rank + group * lanes + i), load_float(to + 4 * i))
            part = next_part(data)

    return kernel


@compiled
def _over_x(lanes: int, narrow: int, sources: int):
    line, row_bytes = 4 * lanes, 4 * _COLUMNS
    size = 2 if narrow else 4

    def kernel(data: int) -> None:
        x, tokens, features, rank_groups = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        q, d_a, rank = argument(data, 4), argument(data, 5), argument(data, 6)
        block = my_scratch(data)
        products = block + 4 * _COLUMNS * _TERMS
        part = next_part(data)
        while part >= 0 and sources:
            first = part * _COLUMNS
            columns = min(_COLUMNS, features - first)
            clear(products, rank_groups * _COLUMNS * lanes)
            for token in range(0, tokens, _TERMS):
                count = min(_TERMS, tokens - token)
                _widen(x + size * (token * features + first), features, count, columns, narrow, block)
                for group in range(rank_groups):
                    into = products + line * group * _COLUMNS
                    _add_by_columns(into, block, q + line * (group * tokens + token), columns, count, row_bytes, lanes)
            for group in range(rank_groups):
                done = 0
                if (group + 1) * lanes <= rank:
                    while done + lanes <= columns:
                        out = d_a + 4 * (group * lanes * features + first + done)
                        sums = products + line * (group * _COLUMNS + done)
                        write_rows(sums, line, out, 4 * features, 0, lanes, 0, 0)
                        done += lanes
                for i in range(group * lanes, min((group + 1) * lanes, rank)):
                    for column in range(done, columns):
                        value = load_float(products + line * (group * _COLUMNS + column) + 4 * (i % lanes))
                        store_float(d_a + 4 * (i * features + first + column), value)
            part = next_part(data)

    return kernel


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
    parts = -(-features // _COLUMNS)
    most = min(TOKENS, -(-tokens // lanes) * lanes)
    shares = team.kept("shares", 4 * parts * groups * most * lanes).data_ptr()
    # of one whole group of ranks Q lies as the kernels read it
    lined = into.Q.data_ptr() if rank == lanes else team.kept("Q by registers", 4 * groups * tokens * lanes).data_ptr()
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
        team.run(_over_g(lanes, narrow, narrow_y), arguments, parts, scratch)
        of_q = (shares, parts, groups, padded, lined + 4 * lanes * first, _row(into.Q, first), count, rank, tokens)
        team.run(_add_shares(lanes), of_q, -(-count // _COLUMNS))
    return Lined(lined, lanes)


def over_x(x: Tensor, lined: Lined, d_a: Tensor, *, meets: bool = True) -> None:
    """dA = Qᵀ x [r, K]; x [M, K] in fp32 or bf16, all contiguous."""
    (tokens, columns), rank = x.shape, d_a.shape[0]
    groups = -(-rank // lined.lanes)
    arguments = (x.data_ptr(), tokens, columns, groups, lined.where, d_a.data_ptr(), rank)
    entry = _over_x(lined.lanes, int(x.dtype == torch.bfloat16))
    parts = -(-columns // _COLUMNS) if tokens else 0
    team.run(entry, arguments, parts, _scratch(groups, lined.lanes), meets=meets)


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
    with team.region():
        over_x(x, sums_over_g(grad_y, P, B_hat, None, c, y, bias, into, False, cpu), d_a)
    return into, d_a


def _scratch(groups: int, lanes: int) -> int:
    return 4 * _COLUMNS * (_TERMS + 2 + groups * lanes)


def _row(tensor: Tensor, row: int) -> int:
    """The address of a row of a contiguous matrix."""
    return tensor.data_ptr() + row * tensor.shape[1] * tensor.element_size()
