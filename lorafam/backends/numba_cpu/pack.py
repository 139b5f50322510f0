"""Tokens as the kernels read them: x [M, K], in fp32 or bf16, times a factor a column, to a scratch.

    APART       [M / width][K][width] fp32, of each 2 · lanes columns the even ones first, then the odd ones
    IN_ORDER    [M / width][K][width] fp32
    PAIRS       [M / width][K / 2][width] of two neighbouring columns in bf16

Tokens past M are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from . import parallel
from .compiled import compiled
from .decoding import IN_ORDER, PAIRS, apart
from .memory import bf16_bits, load_float, store_float, store_word, value_at
from .parallel import argument, next_part
from .processor import Processor
from .token_order import pack_block

_COLUMNS = 256


@njit
def _pack_one(x: int, columns: int, column: int, token: int, tokens: int, narrow: int, factors: int) -> Any:
    """x[token, column] times its factor, 0 past the last token."""
    if token >= tokens:
        return np.float32(0)
    value = value_at(x, token * columns + column, narrow)
    return value * load_float(factors + 4 * column) if factors else value


@njit
def pack_columns(
    x: int,
    tokens: int,
    columns: int,
    factors: int,
    first: int,
    begin: int,
    last: int,
    out: int,
    lanes: int,
    width: int,
    order: int,
    kind: int,
) -> None:
    """Columns begin … last of `width` tokens from `first` on, as the module has it, to `out`."""
    narrow = kind % 2
    size = 2 if narrow else 4
    step = 2 if order == PAIRS else 1
    base = out - 4 * width * (begin // step)
    place = 0
    while place < width:
        token = first + place
        column = begin
        count = 1
        if width % lanes == 0 and place % lanes == 0 and token + lanes <= tokens:
            count = lanes
            while column + 2 * lanes <= last:
                pack_block(
                    x + (token * columns + column) * size,
                    columns * size,
                    factors + 4 * column,
                    base + 4 * (column // step * width + place),
                    4 * width,
                    lanes,
                    order,
                    kind,
                )
                column += 2 * lanes
        for i in range(count):
            for k in range(column, last, step):
                value = _pack_one(x, columns, k, token + i, tokens, narrow, factors)
                if order == PAIRS:
                    other = _pack_one(x, columns, k + 1, token + i, tokens, narrow, factors)
                    at = k // 2 * width + place + i
                    store_word(base + 4 * at, bf16_bits(value) | bf16_bits(other) << np.uint32(16))
                else:
                    row = k if order == IN_ORDER else apart(k, lanes)
                    store_float(base + 4 * (row * width + place + i), value)
        place += count


@compiled
def _pack(lanes: int, width: int, order: int, kind: int, sources: int):
    step = 2 if order == PAIRS else 1

    def kernel(data: int) -> None:
        x, tokens, columns, factors = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        out = argument(data, 4)
        chunks = (columns + _COLUMNS - 1) // _COLUMNS
        part = next_part(data)
        while part >= 0 and sources:
            first, begin = part // chunks * width, part % chunks * _COLUMNS
            last = min(begin + _COLUMNS, columns)
            to = out + 4 * (first * (columns // step) + begin // step * width)
            pack_columns(x, tokens, columns, factors, first, begin, last, to, lanes, width, order, kind)
            part = next_part(data)

    return kernel


def pack(
    x: torch.Tensor,
    width: int,
    order: int,
    cpu: Processor,
    factors: torch.Tensor | None = None,
    name: str = "tokens",
    meets: bool = True,
) -> int:
    """The address of x [M, K], contiguous, packed for tiles of `width` tokens; valid until the next of that name."""
    tokens, columns = x.shape
    groups = -(-tokens // width)
    out = parallel.scratch(name, 4 * groups * width * columns)
    kind = int(x.dtype == torch.bfloat16) + 2 * int(factors is not None)
    entry = _pack(cpu.lanes, width, order, kind)
    arguments = (x.data_ptr(), tokens, columns, parallel.address(factors), out)
    parallel.run(entry, arguments, groups * -(-columns // _COLUMNS), meets=meets)
    return out
