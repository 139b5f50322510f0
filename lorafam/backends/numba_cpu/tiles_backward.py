"""The backward of the tiles (`tiles.py`)."""

from __future__ import annotations

import torch
from numba import njit

from . import parallel
from .compiled import compiled
from .decoding import APART, DENSE, DENSE_BF16, IN_ORDER, PAIRS, apart
from .four_bit import Weight, decode_in_order, decode_run, decode_run_of_two_rows, own, weight_of
from .memory import clear, load_float, load_word, prefetch, store_float, store_value, store_word, value_at
from .multiply import add_tile
from .pack import pack
from .parallel import address, my_scratch, next_part
from .processor import Processor
from .tiles import SPAN, TERMS, TOKENS, order_of, shape_of
from .token_order import copy_registers, write_rows

_WIDE_SPAN = 128
# bytes between registers of columns: a power of two apart, all would go to one set of the nearest cache
PAD = 64


@njit
def add_columns_of_tiles(
    sums: int,
    piece: int,
    tokens: int,
    token_group_bytes: int,
    token_groups: int,
    tiles: int,
    terms: int,
    line: int,
    lanes: int,
    height: int,
    registers: int,
    pairs: int,
) -> None:
    """Adds a piece's terms to every tile of the backward: `height` columns, of a register that has all its terms, by a
    group of tokens.
    """
    tile_bytes = 4 * height * registers * lanes
    for g in range(token_groups):
        for t in range(tiles):
            column = t * height
            add_tile(
                sums + (g * tiles + t) * tile_bytes,
                piece + column // lanes * (TERMS * line + PAD) + column % lanes * 4,
                4,
                line,
                tokens + g * token_group_bytes,
                terms,
                lanes,
                height,
                registers,
                pairs,
            )


@compiled
def _backward(lanes: int, height: int, registers: int, order: int, narrow: int, sources: int):
    width = registers * lanes
    group = 2 * lanes
    size = 2 if narrow else 4
    pairs = 1 if order == PAIRS else 0
    # of W to a term of a tile
    per_term = 1 + pairs
    line = 4 * lanes
    # registers of columns lie one after the other, each with all its terms
    register_bytes = TERMS * line + PAD
    group_bytes = 2 * register_bytes
    unit = TERMS * per_term
    groups_of_64 = 64 // group
    dense, halves = order >= DENSE, 1 if order == DENSE_BF16 else 0
    weight_size = 2 if halves else 4
    # evens and odds of a group
    spread = 1 if order in (APART, PAIRS) else 0

    def kernel(data: int) -> None:
        weight = weight_of(data)
        grad, a, q, rank = own(data, 0), own(data, 1), own(data, 2), own(data, 3)
        start, out, tokens, span = own(data, 4), own(data, 5), own(data, 6), own(data, 7)
        columns = weight.columns
        token_groups = (tokens + width - 1) // width
        tiles = span // height
        piece = my_scratch(data)
        sums = piece + span // lanes * register_bytes
        row_piece = sums + 4 * token_groups * width * span
        part = next_part(data)
        while part >= 0 and sources:
            first = part * span
            here = min(span, columns - first)
            clear(sums, token_groups * width * span)
            for n in range(0, weight.rows, unit):
                terms = min(unit, weight.rows - n)
                if dense:
                    for row in range(terms):
                        position = (n + row) * columns + first
                        to = piece + row * line
                        whole = here // lanes
                        source = weight.codes + position * weight_size
                        # the next piece's lines, of which each comes from far
                        for line_ahead in range(0, here * weight_size, 64):
                            prefetch(source + unit * columns * weight_size + line_ahead)
                        copy_registers(source, to, register_bytes, whole, lanes, halves)
                        for i in range(whole * lanes, here):
                            store_float(to + whole * register_bytes + i % lanes * 4, value_at(source, i, halves))
                elif order == IN_ORDER:
                    for row in range(terms):
                        position = (n + row) * columns + first
                        decode_in_order(weight, position, position + here, row_piece, lanes)
                        for i in range(here):
                            at = i // lanes * register_bytes + row * line + i % lanes * 4
                            store_word(piece + at, load_word(row_piece + 4 * i))
                elif order == PAIRS:
                    for row in range(0, terms, 2):
                        at = (n + row) * columns + first
                        prefetch(weight.codes + (at + unit * columns >> 1))
                        prefetch(weight.codes + (at + (unit + 1) * columns >> 1))
                        to = piece + (row >> 1) * line
                        decode_run_of_two_rows(
                            weight, at, at + here, to, register_bytes, group_bytes, groups_of_64, lanes
                        )
                else:
                    for row in range(terms):
                        at = (n + row) * columns + first
                        prefetch(weight.codes + (at + unit * columns >> 1))
                        to = piece + row * line
                        decode_run(weight, at, at + here, to, register_bytes, group_bytes, groups_of_64, lanes, APART)
                add_columns_of_tiles(
                    sums,
                    piece,
                    grad + 4 * width * (n // per_term),
                    4 * width * (weight.rows // per_term),
                    token_groups,
                    tiles,
                    terms // per_term,
                    line,
                    lanes,
                    height,
                    registers,
                    pairs,
                )
            for r in range(0, rank, TERMS):
                terms = min(TERMS, rank - r)
                for row in range(terms):
                    for i in range(here):
                        place = apart(i, lanes) if spread else i
                        at = place // lanes * register_bytes + row * line + place % lanes * 4
                        store_float(piece + at, load_float(a + 4 * ((r + row) * columns + first + i)))
                add_columns_of_tiles(
                    sums,
                    piece,
                    q + 4 * width * r,
                    4 * width * rank,
                    token_groups,
                    tiles,
                    terms,
                    line,
                    lanes,
                    height,
                    registers,
                    0,
                )
            for token in range(0, tokens, lanes):
                base = sums + 4 * (token // width * span * width + token % width)
                count = min(lanes, tokens - token)
                done = 0
                while count == lanes and (done < here if spread else done + lanes <= here):
                    at = token * columns + first + done
                    write_rows(
                        base + done * 4 * width,
                        4 * width,
                        out + at * size,
                        columns * size,
                        start + 4 * at if start else 0,
                        lanes,
                        spread,
                        narrow,
                    )
                    done += group if spread else lanes
                for i in range(count):
                    for column in range(done, here):
                        place = apart(column, lanes) if spread else column
                        value = load_float(base + 4 * (place * width + i))
                        at = (token + i) * columns + first + column
                        if start:
                            value += load_float(start + 4 * at)
                        store_value(out, at, value, narrow)
            part = next_part(data)

    return kernel


def backward(
    grad_y: torch.Tensor,
    weight: Weight,
    c: torch.Tensor | None,
    Q: torch.Tensor | None,
    A: torch.Tensor | None,
    start: torch.Tensor | None,
    dx: torch.Tensor,
    cpu: Processor,
) -> None:
    """dx [M, K]; grad_y and dx in fp32 or bf16, the rest fp32, all contiguous."""
    # a whole cache line of codes a row, unless the last threads would then wait
    threads = torch.get_num_threads()
    span = min((_WIDE_SPAN, SPAN), key=lambda size: size * -(-weight.columns // (size * threads)))
    for first in range(0, grad_y.shape[0], TOKENS):
        part, into = grad_y[first : first + TOKENS], dx[first : first + TOKENS]
        order = order_of(grad_y, weight, weight.rows, cpu)
        height, registers = shape_of(part.shape[0], order == PAIRS, cpu)
        width = registers * cpu.lanes
        packed = pack(part, width, PAIRS if order == PAIRS else IN_ORDER, cpu, c, meets=first > 0)
        rank, a, q = 0, 0, 0
        if Q is not None and A is not None and Q.shape[1]:
            rank, a = Q.shape[1], A.data_ptr()
            q = pack(Q[first : first + TOKENS], width, IN_ORDER, cpu, name="P")
        begun = None if start is None else start[first : first + TOKENS]
        last = (address(begun), into.data_ptr(), part.shape[0], span)
        scratch = 4 * span * (TERMS + 1 + PAD // cpu.lanes // 4 + -(-part.shape[0] // width) * width)
        entry = _backward(cpu.lanes, height, registers, order, int(dx.dtype == torch.bfloat16))
        parallel.run(entry, (*weight, packed, a, q, rank, *last), -(-weight.columns // span), scratch)
