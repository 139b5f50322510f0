"""Products of a 4-bit weight and few tokens: decoded in registers, used at once, never stored.

    forward     Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias    rows of W by tokens; a dot product along a row
    backward    dx = (G ∘ c) W + start           columns of W by tokens; rows added up

For weights whose rows have whole blocks (`suits`). Sums in fp32 over one row's lanes, or over 256 rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from . import parallel
from .compiled import compiled
from .decoding import IN_ORDER, apart
from .four_bit import WEIGHT, Weight, block_scale, gained, own, weight_at, weight_of
from .memory import clear, load_float, store_float, store_value
from .multiply_codes import add_rows, dot_rows
from .pack import pack
from .parallel import address, argument, my_scratch, next_part
from .processor import Processor
from .token_order import pack_line

FORWARD_TOKENS = 8
BACKWARD_TOKENS = 4
# the largest run of one scale that is unrolled
_STEP = 64
_ROWS_A_PART = 64
# a sum this long is formed apart
_TERMS = 256
# a forward's arguments: where those of its products begin, and how many each has
_MEMBERS, _MEMBER = 2, WEIGHT + 6


def suits(weight: Weight, cpu: Processor) -> bool:
    """Whether rows are whole blocks, and whole lines of 8 · lanes weights."""
    whole = weight.columns % (1 << weight.block_bits) == 0 and weight.columns % (8 * cpu.lanes) == 0
    return whole and weight.columns > 0 and weight.rows >= _ROWS_A_PART


def _tokens(count: int) -> int:
    return next(size for size in (1, 2, 4, 8) if size >= count)


@compiled
def _forward(lanes: int, rows: int, tokens: int, runs: int, narrow: int, pairs: int, nested: int, sources: int):
    line = 8 * lanes
    line_bits = line.bit_length() - 1
    size = 2 if narrow else 4
    line_bytes = 16 * lanes if pairs else 32 * lanes

    def kernel(data: int) -> None:
        x, count = argument(data, 0), argument(data, 1)
        # of which columns and blocks are those of all
        at = _MEMBERS
        weight = weight_at(data, at)
        lines = weight.columns // line
        blocks = weight.columns >> weight.block_bits
        shift = max(0, weight.block_bits - line_bits)
        packed = my_scratch(data)
        sums = packed + lines * tokens * line_bytes
        padded_p = sums + 4 * rows * tokens
        # every thread its own: less than waiting for one another
        for i in range(lines):
            for m in range(tokens):
                to = packed + (i * tokens + m) * line_bytes
                if m < count:
                    pack_line(x + (m * weight.columns + i * line) * size, to, lanes, narrow, pairs)
                else:
                    clear(to, line_bytes // 4)
        before = 0
        filled = -1
        part = next_part(data)
        while part >= 0 and sources:
            # parts come in rising order
            while (part - before) * _ROWS_A_PART >= weight.rows:
                before += -(-weight.rows // _ROWS_A_PART)
                at += _MEMBER
                weight = weight_at(data, at)
            own = at + WEIGHT
            b_hat, p, rank = argument(data, own), argument(data, own + 1), argument(data, own + 2)
            c, bias, out = argument(data, own + 3), argument(data, own + 4), argument(data, own + 5)
            vectors = rank // lanes * lanes
            if count < tokens:
                # as many rows as are read
                if filled != at:
                    filled = at
                    for i in range(tokens * rank):
                        store_float(padded_p + 4 * i, load_float(p + 4 * i) if i < count * rank else np.float32(0))
                p = padded_p
            row = (part - before) * _ROWS_A_PART
            last = min(row + _ROWS_A_PART, weight.rows)
            while row < last:
                # the last rows once more rather than rows that aren't there
                first = min(row, weight.rows - rows)
                dot_rows(
                    weight.codes + (first * weight.columns >> 1),
                    weight.columns >> 1,
                    weight.levels,
                    weight.absmax,
                    weight.absmax_codes,
                    weight.nested_absmax,
                    weight.nested_levels,
                    first * blocks,
                    blocks,
                    shift,
                    lines,
                    packed,
                    b_hat + 4 * first * rank,
                    p,
                    rank,
                    sums,
                    lanes,
                    rows,
                    tokens,
                    runs,
                    pairs,
                    nested,
                )
                for i in range(rows):
                    n = first + i
                    for m in range(count):
                        value = load_float(sums + 4 * (i * tokens + m))
                        for j in range(vectors, rank):
                            value += load_float(b_hat + 4 * (n * rank + j)) * load_float(p + 4 * (m * rank + j))
                        if c:
                            value *= load_float(c + 4 * n)
                        if bias:
                            value += load_float(bias + 4 * n)
                        store_value(out, m * weight.rows + n, value, narrow)
                row += rows
            part = next_part(data)

    return kernel


class Product(NamedTuple):
    """One product of a forward: the weight, P [M, r] and B̂ [N, r] or neither, c, bias [N], and y [M, N] in x's dtype,
    fp32 or bf16; the rest fp32, all contiguous.
    """

    weight: Weight
    P: torch.Tensor | None
    B_hat: torch.Tensor | None
    c: torch.Tensor | None
    bias: torch.Tensor | None
    y: torch.Tensor


def forward(x: torch.Tensor, members: Sequence[Product], cpu: Processor) -> None:
    """The products of x [M, K], M at most `FORWARD_TOKENS`, with weights of one block size and kind of absmax."""
    count = x.shape[0]
    tokens = _tokens(count)
    rows = max(1, 2 * cpu.rows // tokens) if cpu.lanes == 16 else 1
    rows = min(rows, 4)
    narrow = int(x.dtype == torch.bfloat16)
    pairs = int(cpu.bf16 and narrow)
    weight = members[0].weight
    # scales that a line has
    runs = max(1, 8 * cpu.lanes >> weight.block_bits)
    arguments = [x.data_ptr(), count]
    parts = ranks = 0
    for member in members:
        rank = 0 if member.P is None else member.P.shape[1]
        ranks = max(ranks, rank)
        arguments += [
            *(gained(member.weight) if pairs else member.weight),
            address(member.B_hat),
            address(member.P),
            rank,
        ]
        arguments += [address(member.c), address(member.bias), member.y.data_ptr()]
        parts += -(-member.weight.rows // _ROWS_A_PART)
    entry = _forward(cpu.lanes, rows, tokens, runs, narrow, pairs, int(weight.absmax_codes != 0))
    parallel.run(entry, arguments, parts, 4 * tokens * (weight.columns + rows + ranks))


@compiled
def _backward(lanes: int, tokens: int, columns: int, step: int, sources: int):
    groups = step // (2 * lanes)
    steps = columns // step

    def kernel(data: int) -> None:
        weight = weight_of(data)
        factors, start, out, count = own(data, 0), own(data, 1), own(data, 2), own(data, 3)
        narrow = own(data, 4)
        scales = my_scratch(data)
        sums = scales + 4 * _TERMS * steps
        part = next_part(data)
        while part >= 0 and sources:
            column = min(part * columns, weight.columns - columns)
            clear(sums, columns * tokens)
            for first in range(0, weight.rows, _TERMS):
                rows = min(_TERMS, weight.rows - first)
                for i in range(rows):
                    for j in range(steps):
                        position = (first + i) * weight.columns + column + j * step
                        store_float(scales + 4 * (i * steps + j), block_scale(weight, position >> weight.block_bits))
                add_rows(
                    weight.codes + (first * weight.columns + column >> 1),
                    weight.columns >> 1,
                    weight.levels,
                    scales,
                    rows,
                    factors + 4 * first * tokens,
                    sums,
                    lanes,
                    steps,
                    groups,
                    tokens,
                )
            for m in range(count):
                for i in range(columns):
                    value = load_float(sums + 4 * (m * columns + apart(i, lanes)))
                    at = m * weight.columns + column + i
                    if start:
                        value += load_float(start + 4 * at)
                    store_value(out, at, value, narrow)
            part = next_part(data)

    return kernel


def backward(
    grad_y: torch.Tensor,
    weight: Weight,
    c: torch.Tensor | None,
    start: torch.Tensor | None,
    dx: torch.Tensor,
    cpu: Processor,
) -> None:
    """dx [M, K] in fp32 or bf16, M at most `BACKWARD_TOKENS`; start [M, K], c [N] fp32, all contiguous."""
    count = grad_y.shape[0]
    tokens = _tokens(count)
    step = min(_STEP, 1 << weight.block_bits)
    # a cache line of codes where the sums fit the registers
    columns = 64 if tokens == 4 or weight.columns % 128 or step < 64 else 128
    columns = min(columns, weight.columns)
    arguments = (
        *weight,
        pack(grad_y, tokens, IN_ORDER, cpu, c, meets=False),
        address(start),
        dx.data_ptr(),
        count,
        int(dx.dtype == torch.bfloat16),
    )
    scratch = 4 * (_TERMS * (columns // step) + columns * tokens)
    parallel.run(_backward(cpu.lanes, tokens, columns, step), arguments, -(-weight.columns // columns), scratch)
