"""The kernels of the factors' gradients (`factors.py`): a part is some columns of G, or of x."""

from __future__ import annotations

import numpy as np
from numba import njit

from .compiled import compiled
from .memory import clear, load_float, store_float, value_at
from .multiply import add_tile
from .multiply_dense import add_shares
from .parallel import argument, my_scratch, next_part
from .token_order import write_rows, write_scaled

COLUMNS = 128
# tokens that are widened at a time
TERMS = 128
# terms of a product, and of a sum, that are added up apart
_PIECE, _ROWS = 32, 16


@njit
def _widen(source: int, row_length: int, rows: int, columns: int, narrow: int, out: int) -> None:
    """fp32 [rows, COLUMNS] of a part of fp32 or bf16 rows."""
    for row in range(rows):
        for column in range(columns):
            store_float(out + 4 * (row * COLUMNS + column), value_at(source, row * row_length + column, narrow))


@njit
def _add_columns(total: int, block: int, rows: int, columns: int, level: int) -> None:
    """total [columns] += Σ over the rows of a block, in sums of sums."""
    few = level + 4 * COLUMNS
    clear(level, COLUMNS)
    for first in range(0, rows, _ROWS):
        clear(few, COLUMNS)
        for row in range(first, min(first + _ROWS, rows)):
            for column in range(columns):
                to = few + 4 * column
                store_float(to, load_float(to) + load_float(block + 4 * (row * COLUMNS + column)))
        for column in range(columns):
            store_float(level + 4 * column, load_float(level + 4 * column) + load_float(few + 4 * column))
    for column in range(columns):
        store_float(total + 4 * column, load_float(total + 4 * column) + load_float(level + 4 * column))


@njit
def _add_by_columns(
    products: int, block: int, factors: int, columns: int, rows: int, row_bytes: int, lanes: int
) -> None:
    """products [columns, lanes] += blockᵀ · factors [rows, lanes] for a block [rows, COLUMNS]."""
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
def over_g(lanes: int, narrow: int, narrow_y: int, sources: int):
    line, row_bytes = 4 * lanes, 4 * COLUMNS
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
        level = block + 4 * COLUMNS * TERMS
        products = level + 8 * COLUMNS
        part = next_part(data)
        while part >= 0 and sources:
            first = part * COLUMNS
            columns = min(COLUMNS, features - first)
            clear(products, rank_groups * COLUMNS * lanes)
            for token in range(0, tokens, TERMS):
                count = min(TERMS, tokens - token)
                at = token * features + first
                _widen(grad + size * at, features, count, columns, narrow, block)
                for group in range(rank_groups):
                    share = shares + line * ((part * rank_groups + group) * padded + token)
                    clear(share, (count + lanes - 1) // lanes * lanes * lanes)
                    for row in range(0, count, lanes):
                        for column in range(0, columns, _PIECE):
                            add_tile(
                                share + row * line,
                                block + 4 * (row * COLUMNS + column),
                                row_bytes,
                                4,
                                b_hat + line * (group * features + first + column),
                                min(_PIECE, columns - column),
                                lanes,
                                lanes,
                                1,
                                0,
                            )
                    into = products + line * group * COLUMNS
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
                            to = block + 4 * (row * COLUMNS + column)
                            store_float(to, load_float(to) * value)
                    _add_columns(sums_y + 4 * first, block, count, columns, level)
            for column in range(columns):
                factor = load_float(c + 4 * (first + column)) if c else np.float32(1)
                row = d_b + 4 * (first + column) * rank
                for group in range(rank // lanes):
                    at = products + line * (group * COLUMNS + column)
                    scale_here = scale + scale_step * group * lanes
                    write_scaled(at, factor, row + line * group, before, scale_here, scale_step, lanes)
                for i in range(rank // lanes * lanes, rank):
                    value = load_float(products + line * (i // lanes * COLUMNS + column) + 4 * (i % lanes)) * factor
                    if before:
                        value += load_float(row + 4 * i)
                    if scale:
                        value *= load_float(scale + scale_step * i)
                    store_float(row + 4 * i, value)
            part = next_part(data)

    return kernel


@compiled
def add_q_shares(lanes: int, sources: int):
    line = 4 * lanes

    def kernel(data: int) -> None:
        shares, parts, rank_groups, padded = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        by_lanes, q, tokens, rank = argument(data, 4), argument(data, 5), argument(data, 6), argument(data, 7)
        of_group = argument(data, 8)
        part = next_part(data)
        while part >= 0 and sources:
            last = min((part + 1) * COLUMNS, tokens)
            for group in range(rank_groups):
                for token in range(part * COLUMNS, last):
                    to = by_lanes + line * (group * of_group + token)
                    at = shares + line * (group * padded + token)
                    add_shares(at, line * rank_groups * padded, parts, 0, 0, 0, 0, 0, to, lanes, 1, 0)
                    if q != by_lanes:
                        for i in range(min(lanes, rank - group * lanes)):
                            store_float(q + 4 * (token * rank + group * lanes + i), load_float(to + 4 * i))
            part = next_part(data)

    return kernel


@compiled
def over_x(lanes: int, narrow: int, sources: int):
    line, row_bytes = 4 * lanes, 4 * COLUMNS
    size = 2 if narrow else 4

    def kernel(data: int) -> None:
        x, tokens, features, rank_groups = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        q, d_a, rank = argument(data, 4), argument(data, 5), argument(data, 6)
        block = my_scratch(data)
        products = block + 4 * COLUMNS * TERMS
        part = next_part(data)
        while part >= 0 and sources:
            first = part * COLUMNS
            columns = min(COLUMNS, features - first)
            clear(products, rank_groups * COLUMNS * lanes)
            for token in range(0, tokens, TERMS):
                count = min(TERMS, tokens - token)
                _widen(x + size * (token * features + first), features, count, columns, narrow, block)
                for group in range(rank_groups):
                    into = products + line * group * COLUMNS
                    _add_by_columns(into, block, q + line * (group * tokens + token), columns, count, row_bytes, lanes)
            for group in range(rank_groups):
                done = 0
                if (group + 1) * lanes <= rank:
                    while done + lanes <= columns:
                        out = d_a + 4 * (group * lanes * features + first + done)
                        sums = products + line * (group * COLUMNS + done)
                        write_rows(sums, line, out, 4 * features, 0, lanes, 0, 0)
                        done += lanes
                for i in range(group * lanes, min((group + 1) * lanes, rank)):
                    for column in range(done, columns):
                        value = load_float(products + line * (group * COLUMNS + column) + 4 * (i % lanes))
                        store_float(d_a + 4 * (i * features + first + column), value)
            part = next_part(data)

    return kernel
