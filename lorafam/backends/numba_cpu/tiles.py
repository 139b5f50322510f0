"""Products of a 4-bit weight and many tokens: a piece of W is decoded into the cache and multiplied, then the next.

    forward     Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias        a part is some rows of W, its pieces follow one another along K
    backward    dx = (G ∘ c) W + Q A + start         a part is some columns of W, its pieces follow one another along N

A tile of sums is `height` weights by `width` tokens, in registers while a piece's terms are added up; W is decoded once
for up to `TOKENS` tokens. Sums of `TERMS` products are formed apart, in fp32; where tokens and outputs are bf16 and the
processor multiplies pairs of bf16, W is rounded to bf16, else it is fp32 as decoded. The low-rank part is always fp32.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from . import team
from .compiled import compiled
from .few_tokens import address
from .four_bit import Weight, block_scale, decode_in_order, weight_of
from .pack import bf16_bits, pack
from .processor import Processor
from .team import argument, my_scratch, next_part
from .vector import (
    APART,
    IN_ORDER,
    PAIRS,
    add_tile,
    decode_groups,
    decode_row_pairs,
    load_float,
    load_word,
    prefetch,
    store_float,
    store_half,
    store_word,
    write_rows,
)

TOKENS = 512
TERMS = 128
# of W in a part: rows of the forward, columns of the backward
_SPAN = 64
_WIDE_SPAN = 128


@njit
def _zero(out: int, count: int) -> None:
    for i in range(count):
        store_float(out + 4 * i, np.float32(0))


@njit
def _store(out: int, index: int, value: float, narrow: int) -> None:
    if narrow:
        store_half(out + 2 * index, np.uint16(bf16_bits(value)))
    else:
        store_float(out + 4 * index, value)


@compiled
def _forward(lanes: int, height: int, registers: int, order: int, narrow: int, sources: int):
    width = registers * lanes
    group = 2 * lanes
    size = 2 if narrow else 4
    pairs = 1 if order == PAIRS else 0
    row_bytes = 4 * TERMS
    unit = TERMS * 2 if order == PAIRS else TERMS
    group_bytes = 4 * lanes if order == PAIRS else 8 * lanes
    odd_offset = 4 * lanes
    lines = unit // 128
    two = 64 // group
    tile_bytes = 4 * height * width

    def kernel(data: int) -> None:
        weight = weight_of(data)
        x, b_hat, p, rank = argument(data, 9), argument(data, 10), argument(data, 11), argument(data, 12)
        c, bias, out, tokens = argument(data, 13), argument(data, 14), argument(data, 15), argument(data, 16)
        span = argument(data, 17)
        columns = weight.columns
        token_groups = (tokens + width - 1) // width
        row_groups = span // height
        piece = my_scratch(data)
        sums = piece + span * row_bytes
        whole = weight.block_bits >= 6 and columns % 64 == 0
        part = next_part(data)
        while part >= 0 and sources:
            first = part * span
            rows = min(span, weight.rows - first)
            _zero(sums, token_groups * span * width)
            for k in range(0, columns, unit):
                terms = min(unit, columns - k)
                for row in range(rows):
                    position = (first + row) * columns + k
                    to = piece + row * row_bytes
                    # the row's next piece, or the lines come one after the other, each from far
                    for line in range(lines):
                        prefetch(weight.codes + (position + unit >> 1) + 64 * line)
                    if order == IN_ORDER:
                        decode_in_order(weight, position, position + terms, to, lanes)
                    elif whole:
                        for at in range(position, position + terms, 64):
                            scale = block_scale(weight, at >> weight.block_bits)
                            codes = weight.codes + (at >> 1)
                            decode_groups(codes, weight.levels, scale, to, odd_offset, group_bytes, two, lanes, order)
                            to += two * group_bytes
                    else:
                        for at in range(position, position + terms, group):
                            scale = block_scale(weight, at >> weight.block_bits)
                            codes = weight.codes + (at >> 1)
                            decode_groups(codes, weight.levels, scale, to, odd_offset, group_bytes, 1, lanes, order)
                            to += group_bytes
                if pairs:
                    terms = terms // 2
                for g in range(token_groups):
                    here = x + 4 * width * ((g * columns + k) // (1 + pairs))
                    for r in range(row_groups):
                        add_tile(
                            sums + (g * row_groups + r) * tile_bytes,
                            piece + r * height * row_bytes,
                            row_bytes,
                            4,
                            here,
                            terms,
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
                for g in range(token_groups):
                    for r in range(row_groups):
                        add_tile(
                            sums + (g * row_groups + r) * tile_bytes,
                            piece + r * height * row_bytes,
                            row_bytes,
                            4,
                            p + 4 * width * (g * rank + k),
                            terms,
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
                        _store(out, (token + i) * weight.rows + first + row, value, narrow)
            part = next_part(data)

    return kernel


@compiled
def _backward(lanes: int, height: int, registers: int, order: int, narrow: int, sources: int):
    width = registers * lanes
    group = 2 * lanes
    size = 2 if narrow else 4
    pairs = 1 if order == PAIRS else 0
    line = 4 * lanes
    # registers of columns lie one after the other, each with all its terms
    register_bytes = TERMS * line
    group_bytes = 2 * register_bytes
    unit = TERMS * 2 if order == PAIRS else TERMS
    two = 64 // group
    tile_bytes = 4 * height * width

    def kernel(data: int) -> None:
        weight = weight_of(data)
        grad, a, q, rank = argument(data, 9), argument(data, 10), argument(data, 11), argument(data, 12)
        start, out, tokens, span = argument(data, 13), argument(data, 14), argument(data, 15), argument(data, 16)
        columns = weight.columns
        token_groups = (tokens + width - 1) // width
        tiles = span // height
        piece = my_scratch(data)
        sums = piece + span // lanes * register_bytes
        row_piece = sums + 4 * token_groups * width * span
        whole = weight.block_bits >= 6 and columns % 64 == 0
        part = next_part(data)
        while part >= 0 and sources:
            first = part * span
            here = min(span, columns - first)
            _zero(sums, token_groups * width * span)
            for n in range(0, weight.rows, unit):
                terms = min(unit, weight.rows - n)
                if order == IN_ORDER:
                    for row in range(terms):
                        position = (n + row) * columns + first
                        decode_in_order(weight, position, position + here, row_piece, lanes)
                        for i in range(here):
                            at = i // lanes * register_bytes + row * line + i % lanes * 4
                            store_word(piece + at, load_word(row_piece + 4 * i))
                elif order == PAIRS:
                    for row in range(0, terms, 2):
                        position = (n + row) * columns + first
                        prefetch(weight.codes + (position + unit * columns >> 1))
                        prefetch(weight.codes + (position + (unit + 1) * columns >> 1))
                        to = piece + (row >> 1) * line
                        if whole:
                            for at in range(position, position + here, 64):
                                decode_row_pairs(
                                    weight.codes + (at >> 1),
                                    block_scale(weight, at >> weight.block_bits),
                                    weight.codes + (at + columns >> 1),
                                    block_scale(weight, (at + columns) >> weight.block_bits),
                                    weight.levels,
                                    to,
                                    register_bytes,
                                    group_bytes,
                                    two,
                                    lanes,
                                )
                                to += two * group_bytes
                        else:
                            for at in range(position, position + here, group):
                                decode_row_pairs(
                                    weight.codes + (at >> 1),
                                    block_scale(weight, at >> weight.block_bits),
                                    weight.codes + (at + columns >> 1),
                                    block_scale(weight, (at + columns) >> weight.block_bits),
                                    weight.levels,
                                    to,
                                    register_bytes,
                                    group_bytes,
                                    1,
                                    lanes,
                                )
                                to += group_bytes
                elif whole:
                    for row in range(terms):
                        position = (n + row) * columns + first
                        prefetch(weight.codes + (position + unit * columns >> 1))
                        to = piece + row * line
                        for at in range(position, position + here, 64):
                            scale = block_scale(weight, at >> weight.block_bits)
                            decode_groups(
                                weight.codes + (at >> 1),
                                weight.levels,
                                scale,
                                to,
                                register_bytes,
                                group_bytes,
                                two,
                                lanes,
                                APART,
                            )
                            to += two * group_bytes
                else:
                    for row in range(terms):
                        position = (n + row) * columns + first
                        to = piece + row * line
                        for at in range(position, position + here, group):
                            scale = block_scale(weight, at >> weight.block_bits)
                            decode_groups(
                                weight.codes + (at >> 1),
                                weight.levels,
                                scale,
                                to,
                                register_bytes,
                                group_bytes,
                                1,
                                lanes,
                                APART,
                            )
                            to += group_bytes
                if pairs:
                    terms = terms // 2
                for g in range(token_groups):
                    factors = grad + 4 * width * ((g * weight.rows + n) // (1 + pairs))
                    for t in range(tiles):
                        at = t * height
                        add_tile(
                            sums + (g * tiles + t) * tile_bytes,
                            piece + at // lanes * register_bytes + at % lanes * 4,
                            4,
                            line,
                            factors,
                            terms,
                            lanes,
                            height,
                            registers,
                            pairs,
                        )
            for r in range(0, rank, TERMS):
                terms = min(TERMS, rank - r)
                for row in range(terms):
                    for i in range(here):
                        place = i
                        if order != IN_ORDER:
                            inside = i % group
                            place = i - inside + inside // 2 + inside % 2 * lanes
                        at = place // lanes * register_bytes + row * line + place % lanes * 4
                        store_float(piece + at, load_float(a + 4 * ((r + row) * columns + first + i)))
                for g in range(token_groups):
                    for t in range(tiles):
                        at = t * height
                        add_tile(
                            sums + (g * tiles + t) * tile_bytes,
                            piece + at // lanes * register_bytes + at % lanes * 4,
                            4,
                            line,
                            q + 4 * width * (g * rank + r),
                            terms,
                            lanes,
                            height,
                            registers,
                            0,
                        )
            for token in range(0, tokens, lanes):
                base = sums + 4 * (token // width * span * width + token % width)
                count = min(lanes, tokens - token)
                done = 0
                while order != IN_ORDER and count == lanes and done < here:
                    at = token * columns + first + done
                    write_rows(
                        base + done * 4 * width,
                        4 * width,
                        out + at * size,
                        columns * size,
                        start + 4 * at if start else 0,
                        lanes,
                        1,
                        narrow,
                    )
                    done += group
                for i in range(count):
                    for column in range(done, here):
                        place = column
                        if order != IN_ORDER:
                            inside = column % group
                            place = column - inside + inside // 2 + inside % 2 * lanes
                        value = load_float(base + 4 * (place * width + i))
                        at = (token + i) * columns + first + column
                        if start:
                            value += load_float(start + 4 * at)
                        _store(out, at, value, narrow)
            part = next_part(data)

    return kernel


def _shape(tokens: int, pairs: bool, cpu: Processor) -> tuple[int, int]:
    """Height of a tile and its registers of tokens."""
    groups = -(-tokens // cpu.lanes)
    # a half-filled tile costs as much as a full one; one register at a time is slower for pairs
    single = groups == 1 or (groups % 2 == 1 and not pairs)
    return (cpu.lanes, 1) if single else (cpu.rows, 2)


def _order(x: torch.Tensor, weight: Weight, terms: int, cpu: Processor) -> int:
    """How W is decoded: in its order where rows don't start with a group."""
    if weight.columns % (2 * cpu.lanes):
        return IN_ORDER
    return PAIRS if x.dtype == torch.bfloat16 and cpu.bf16 and terms % 2 == 0 else APART


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
        order = _order(x, weight, weight.columns, cpu)
        height, registers = _shape(part.shape[0], order == PAIRS, cpu)
        width = registers * cpu.lanes
        packed, rank, b_hat, p = pack(part, width, order, cpu), 0, 0, 0
        if P is not None and B_hat is not None and P.shape[1]:
            rank, b_hat = P.shape[1], B_hat.data_ptr()
            p = pack(P[first : first + TOKENS], width, IN_ORDER, cpu, name="P")
        last = (address(c), address(bias), into.data_ptr(), part.shape[0], _SPAN)
        scratch = 4 * _SPAN * (TERMS + -(-part.shape[0] // width) * width)
        entry = _forward(cpu.lanes, height, registers, order, int(y.dtype == torch.bfloat16))
        team.run(entry, (*weight, packed, b_hat, p, rank, *last), -(-weight.rows // _SPAN), scratch)


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
    span = min((_WIDE_SPAN, _SPAN), key=lambda size: size * -(-weight.columns // (size * threads)))
    for first in range(0, grad_y.shape[0], TOKENS):
        part, into = grad_y[first : first + TOKENS], dx[first : first + TOKENS]
        order = _order(grad_y, weight, weight.rows, cpu)
        height, registers = _shape(part.shape[0], order == PAIRS, cpu)
        width = registers * cpu.lanes
        packed = pack(part, width, PAIRS if order == PAIRS else IN_ORDER, cpu, c)
        rank, a, q = 0, 0, 0
        if Q is not None and A is not None and Q.shape[1]:
            rank, a = Q.shape[1], A.data_ptr()
            q = pack(Q[first : first + TOKENS], width, IN_ORDER, cpu, name="P")
        begun = 0 if start is None else start[first : first + TOKENS].data_ptr()
        last = (begun, into.data_ptr(), part.shape[0], span)
        scratch = 4 * span * (TERMS + 1 + -(-part.shape[0] // width) * width)
        entry = _backward(cpu.lanes, height, registers, order, int(dx.dtype == torch.bfloat16))
        team.run(entry, (*weight, packed, a, q, rank, *last), -(-weight.columns // span), scratch)
