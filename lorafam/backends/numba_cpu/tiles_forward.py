"""The forward of the tiles (`tiles.py`)."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from . import parallel
from .compiled import compiled
from .decoding import DENSE, DENSE_BF16, IN_ORDER, PAIRS
from .four_bit import Weight, decode_in_order, decode_run, own, weight_of
from .memory import clear, load_float, prefetch, store_float, store_value
from .multiply import add_tile
from .pack import pack
from .parallel import address, my_scratch, next_part
from .processor import Processor
from .tiles import SPAN, TERMS, TOKENS, copy_row, order_of, shape_of
from .token_order import write_rows

# with AVX2 five rows a tile keep the multiplier busier than four; a part is whole tiles and whole registers
FIVE, SPAN_OF_FIVES = 5, 40


@njit
def add_rows_of_tiles(
    sums: int,
    sums_bytes: int,
    piece: int,
    tokens: int,
    token_group_bytes: int,
    token_groups: int,
    tiles: int,
    terms: int,
    row_bytes: int,
    lanes: int,
    height: int,
    registers: int,
    pairs: int,
) -> None:
    """Adds a piece's terms to every tile of the forward: `height` rows of the piece by a group of tokens, whose sums
    take `sums_bytes`.
    """
    tile_bytes = 4 * height * registers * lanes
    for g in range(token_groups):
        for r in range(tiles):
            add_tile(
                sums + g * sums_bytes + r * tile_bytes,
                piece + r * height * row_bytes,
                row_bytes,
                4,
                tokens + g * token_group_bytes,
                terms,
                lanes,
                height,
                registers,
                pairs,
            )


@compiled
def _forward(lanes: int, height: int, registers: int, order: int, narrow: int, sources: int):
    width = registers * lanes
    group = 2 * lanes
    size = 2 if narrow else 4
    pairs = 1 if order == PAIRS else 0
    # of W to a term of a tile
    per_term = 1 + pairs
    row_bytes = 4 * TERMS
    unit = TERMS * per_term
    group_bytes = 4 * lanes if order == PAIRS else 8 * lanes
    odd_offset = 4 * lanes
    lines = unit // 128
    groups_of_64 = 64 // group
    dense, halves = order >= DENSE, 1 if order == DENSE_BF16 else 0

    def kernel(data: int) -> None:
        weight = weight_of(data)
        x, b_hat, p, rank = own(data, 0), own(data, 1), own(data, 2), own(data, 3)
        c, bias, out, tokens = own(data, 4), own(data, 5), own(data, 6), own(data, 7)
        span = own(data, 8)
        columns = weight.columns
        token_groups = (tokens + width - 1) // width
        piece = my_scratch(data)
        sums = piece + span * row_bytes
        part = next_part(data)
        while part >= 0 and sources:
            first = part * span
            rows = min(span, weight.rows - first)
            row_groups = (rows + height - 1) // height
            clear(sums, token_groups * span * width)
            for k in range(0, columns, unit):
                terms = min(unit, columns - k)
                for row in range(rows):
                    position = (first + row) * columns + k
                    to = piece + row * row_bytes
                    if dense:
                        copy_row(weight.codes, position, terms, to, lanes, halves)
                        continue
                    # the row's next piece, or the lines come one after the other, each from far
                    for line in range(lines):
                        prefetch(weight.codes + (position + unit >> 1) + 64 * line)
                    if order == IN_ORDER:
                        decode_in_order(weight, position, position + terms, to, lanes)
                    else:
                        end = position + terms
                        decode_run(weight, position, end, to, odd_offset, group_bytes, groups_of_64, lanes, order)
                add_rows_of_tiles(
                    sums,
                    4 * span * width,
                    piece,
                    x + 4 * width * (k // per_term),
                    4 * width * (columns // per_term),
                    token_groups,
                    row_groups,
                    terms // per_term,
                    row_bytes,
                    lanes,
                    height,
                    registers,
                    pairs,
                )
            for k in range(0, rank, TERMS):
                terms = min(TERMS, rank - k)
                for row in range(rows):
                    for j in range(terms):
                        value = load_float(b_hat + 4 * ((first + row) * rank + k + j))
                        store_float(piece + row * row_bytes + 4 * j, value)
                add_rows_of_tiles(
                    sums,
                    4 * span * width,
                    piece,
                    p + 4 * width * k,
                    4 * width * rank,
                    token_groups,
                    row_groups,
                    terms,
                    row_bytes,
                    lanes,
                    height,
                    registers,
                    0,
                )
            if c or bias:
                for g in range(token_groups):
                    for row in range(rows):
                        at = sums + 4 * (g * span + row) * width
                        factor = load_float(c + 4 * (first + row)) if c else np.float32(1)
                        added = load_float(bias + 4 * (first + row)) if bias else np.float32(0)
                        for i in range(width):
                            store_float(at + 4 * i, load_float(at + 4 * i) * factor + added)
            for token in range(0, tokens, lanes):
                base = sums + 4 * (token // width * span * width + token % width)
                count = min(lanes, tokens - token)
                done = 0
                while count == lanes and done + lanes <= rows:
                    write_rows(
                        base + done * 4 * width,
                        4 * width,
                        out + (token * weight.rows + first + done) * size,
                        weight.rows * size,
                        0,
                        lanes,
                        0,
                        narrow,
                    )
                    done += lanes
                for i in range(count):
                    for row in range(done, rows):
                        value = load_float(base + 4 * (row * width + i))
                        store_value(out, (token + i) * weight.rows + first + row, value, narrow)
            part = next_part(data)

    return kernel


def _packed(order: int) -> int:
    """How the forward's tokens are packed for a weight of that order."""
    return IN_ORDER if order >= DENSE else order


def forward(
    x: torch.Tensor,
    weight: Weight,
    P: torch.Tensor | None,
    B_hat: torch.Tensor | None,
    c: torch.Tensor | None,
    bias: torch.Tensor | None,
    y: torch.Tensor,
    cpu: Processor,
) -> None:
    """y [M, N]; x and y in fp32 or bf16, the rest fp32, all contiguous."""
    for first in range(0, x.shape[0], TOKENS):
        part, into = x[first : first + TOKENS], y[first : first + TOKENS]
        order = order_of(x, weight, weight.columns, cpu)
        height, registers = shape_of(part.shape[0], order == PAIRS, cpu)
        width = registers * cpu.lanes
        packed, rank, b_hat, p = pack(part, width, _packed(order), cpu, meets=first > 0), 0, 0, 0
        if P is not None and B_hat is not None and P.shape[1]:
            rank, b_hat = P.shape[1], B_hat.data_ptr()
            p = pack(P[first : first + TOKENS], width, IN_ORDER, cpu, name="P")
        span = SPAN
        if (cpu.lanes, registers) == (8, 2):
            height, span = FIVE, SPAN_OF_FIVES
        last = (address(c), address(bias), into.data_ptr(), part.shape[0], span)
        scratch = 4 * span * (TERMS + -(-part.shape[0] // width) * width)
        entry = _forward(cpu.lanes, height, registers, order, int(y.dtype == torch.bfloat16))
        parallel.run(entry, (*weight, packed, b_hat, p, rank, *last), -(-weight.rows // span), scratch)
