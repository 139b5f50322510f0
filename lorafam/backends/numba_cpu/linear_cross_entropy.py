"""The loss of an output head and its gradient in x without the logits: one pass over W.

The vocabulary is cut into shares; a share takes its rows of W a block at a time, forms the block's logits in the cache,
e^(logit − m) of them and their product with the same rows, which are in the cache still: the online softmax of
FlashAttention (arXiv 2205.14135) with W for keys and values. The shares are then put together.

    l = x Wᵀ + bias          loss = log Σ_v e^(l_v) − l_target          dx = Σ_v softmax(l)_v w_v − w_target
"""

from __future__ import annotations

import torch
from numba import njit

from ...ops.library import in_dtype
from .. import eager
from . import parallel
from .compiled import compiled
from .decoding import IN_ORDER
from .memory import clear, load_float, load_integer, store_float, value_at
from .online_softmax import add_block, fill_rows, scale_rows, weighted_rows
from .pack import pack
from .parallel import address, argument, my_scratch, next_part
from .processor import Processor, processor
from .tiles import SPAN, TERMS, copy_row, shape_of
from .tiles_backward import PAD, add_columns_of_tiles
from .tiles_forward import FIVE, SPAN_OF_FIVES, add_rows_of_tiles
from .token_order import copy_registers, write_rows

Tensor = torch.Tensor
# of a pass over W
TOKENS = 256
# bytes of the shares' sums, and how many shares these may make
_SUMS, _FEWEST, _MOST = 16 << 20, 8, 64
_LOWEST = -3e38


@njit
def _copy_columns(
    weight: int, first: int, count: int, columns: int, rows: int, out: int, lanes: int, narrow: int
) -> None:
    """Columns first … of `rows` rows, in fp32: registers of columns one after the other, each with all rows."""
    size = 2 if narrow else 4
    register_bytes = TERMS * 4 * lanes + PAD
    whole = count // lanes
    for row in range(rows):
        source = weight + (row * columns + first) * size
        to = out + row * 4 * lanes
        copy_registers(source, to, register_bytes, whole, lanes, narrow)
        for i in range(whole * lanes, count):
            store_float(to + whole * register_bytes + i % lanes * 4, value_at(source, i, narrow))


@compiled
def _shares(lanes: int, height: int, registers: int, narrow: int, differentiates: int, sources: int):
    width = registers * lanes
    size = 2 if narrow else 4
    row_bytes, line = 4 * TERMS, 4 * lanes
    # with AVX2 five rows a tile keep the multiplier busier than four
    fives = lanes == 8 and registers == 2
    span = SPAN_OF_FIVES if fives else SPAN
    rows_of_tile = FIVE if fives else height
    block = TERMS // span * span
    register_bytes = TERMS * line + PAD
    tiles = SPAN // height

    def kernel(data: int) -> None:
        weight, rows, columns, bias = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        x, targets, tokens, share_rows = argument(data, 4), argument(data, 5), argument(data, 6), argument(data, 7)
        most, total, chosen, sums = argument(data, 8), argument(data, 9), argument(data, 10), argument(data, 11)
        groups = (tokens + width - 1) // width
        padded = groups * width
        spans = (columns + SPAN - 1) // SPAN
        piece = my_scratch(data)
        logits = piece + SPAN // lanes * register_bytes
        factors = logits + 4 * padded * block
        part = next_part(data)
        while part >= 0 and sources:
            my_most, my_total = most + 4 * part * padded, total + 4 * part * padded
            my_sums = sums + 4 * part * padded * spans * SPAN
            clear(my_total, padded)
            for i in range(padded):
                store_float(my_most + 4 * i, _LOWEST)
            if differentiates:
                clear(my_sums, padded * spans * SPAN)
            last = min(rows, (part + 1) * share_rows)
            for n in range(part * share_rows, last, block):
                here = min(block, last - n)
                for g in range(groups):
                    fill_rows(logits + 4 * g * block * width, here, bias + 4 * n if bias else 0, lanes, registers)
                for begin in range(0, here, span):
                    some = min(span, here - begin)
                    for k in range(0, columns, TERMS):
                        terms = min(TERMS, columns - k)
                        for row in range(some):
                            copy_row(
                                weight, (n + begin + row) * columns + k, terms, piece + row * row_bytes, lanes, narrow
                            )
                        add_rows_of_tiles(
                            logits + 4 * begin * width,
                            4 * block * width,
                            piece,
                            x + 4 * width * k,
                            4 * width * columns,
                            groups,
                            (some + rows_of_tile - 1) // rows_of_tile,
                            terms,
                            row_bytes,
                            lanes,
                            rows_of_tile,
                            registers,
                            0,
                        )
                for i in range(tokens):
                    target = load_integer(targets + 8 * i)
                    if n <= target < n + here:
                        at = logits + 4 * ((i // width * block + target - n) * width + i % width)
                        store_float(chosen + 4 * i, load_float(at))
                grown = False
                for at in range(0, padded, lanes):
                    add_block(
                        logits + 4 * (at // width * block * width + at % width),
                        4 * width,
                        here,
                        my_most + 4 * at,
                        my_total + 4 * at,
                        factors + 4 * at,
                        lanes,
                    )
                    for i in range(lanes):
                        grown |= load_float(factors + 4 * (at + i)) != 1
                if not differentiates:
                    continue
                for s in range(spans):
                    first = s * SPAN
                    to = my_sums + 4 * padded * first
                    for g in range(groups if grown and n > part * share_rows else 0):
                        scale_rows(to + 4 * g * SPAN * width, SPAN, factors + 4 * g * width, lanes, registers)
                    start = weight + n * columns * size
                    _copy_columns(start, first, min(SPAN, columns - first), columns, here, piece, lanes, narrow)
                    add_columns_of_tiles(
                        to,
                        piece,
                        logits,
                        4 * block * width,
                        groups,
                        tiles,
                        here,
                        line,
                        lanes,
                        height,
                        registers,
                        0,
                    )
            part = next_part(data)

    return kernel


@compiled
def _together(lanes: int, registers: int, sources: int):
    width = registers * lanes
    row_bytes = 4 * width

    def kernel(data: int) -> None:
        sums, factors, shares, tokens = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        columns, dx = argument(data, 4), argument(data, 5)
        padded = (tokens + width - 1) // width * width
        share_bytes = 4 * padded * ((columns + SPAN - 1) // SPAN) * SPAN
        rows = my_scratch(data)
        part = next_part(data)
        while part >= 0 and sources:
            first = part * SPAN
            here = min(SPAN, columns - first)
            for token in range(0, tokens, width):
                at = sums + 4 * (first * padded + token * SPAN)
                weighted_rows(at, share_bytes, factors + 4 * token, 4 * padded, shares, here, rows, lanes, registers)
                for begin in range(token, min(token + width, tokens), lanes):
                    base = rows + 4 * (begin - token)
                    to = dx + 4 * (begin * columns + first)
                    done = 0
                    while tokens - begin >= lanes and done + lanes <= here:
                        write_rows(base + done * row_bytes, row_bytes, to + 4 * done, 4 * columns, 0, lanes, 0, 0)
                        done += lanes
                    for i in range(min(lanes, tokens - begin)):
                        for column in range(done, here):
                            value = load_float(base + column * row_bytes + 4 * i)
                            store_float(to + 4 * (i * columns + column), value)
            part = next_part(data)

    return kernel


def _one_pass(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, differentiates: bool, cpu: Processor
) -> tuple[Tensor, Tensor | None]:
    """losses [M] in fp32 and dx [M, K] in fp32, of at most `TOKENS` tokens."""
    (tokens, columns), rows = x.shape, weight.shape[0]
    height, registers = shape_of(tokens, False, cpu)
    width = registers * cpu.lanes
    padded, spans = -(-tokens // width) * width, -(-columns // SPAN)
    count = min(max(_SUMS // (4 * padded * spans * SPAN), _FEWEST), _MOST, -(-rows // TERMS))
    # whole blocks of either height
    share_rows = -(-rows // (count * TERMS)) * TERMS
    count = -(-rows // share_rows)
    most, total = x.new_empty(2, count, padded, dtype=torch.float32)
    chosen = x.new_empty(tokens, dtype=torch.float32)
    sums = x.new_empty(count if differentiates else 0, spans, padded // width, SPAN, width, dtype=torch.float32)
    packed = pack(x, width, IN_ORDER, cpu)
    scratch = SPAN // cpu.lanes * (TERMS * 4 * cpu.lanes + PAD) + 4 * padded * (TERMS + 1)
    entry = _shares(cpu.lanes, height, registers, int(weight.dtype == torch.bfloat16), int(differentiates))
    arguments = (weight.data_ptr(), rows, columns, address(bias), packed, target.data_ptr(), tokens, share_rows)
    parallel.run(entry, (*arguments, *map(address, (most, total, chosen, sums))), count, scratch)

    highest = most.amax(0)
    factors = (most - highest).exp_()
    whole = (factors * total).sum(0)
    losses = (highest + whole.log())[:tokens].sub_(chosen)
    if not differentiates:
        return losses, None
    factors.div_(whole)
    dx = x.new_empty(tokens, columns, dtype=torch.float32)
    entry, shares = _together(cpu.lanes, registers), (address(sums), address(factors), count)
    parallel.run(entry, (*shares, tokens, columns, address(dx)), spans, 4 * SPAN * width)
    return losses, dx.sub_(weight[target])


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, differentiates: bool
) -> tuple[Tensor, Tensor]:
    """losses [M] and, where it `differentiates`, ∂loss_m/∂x_m [M, K], in fp32."""
    if not suits(x, weight):
        return eager.linear_cross_entropy(x, weight, bias, target, differentiates)
    cpu, bias = processor(), None if bias is None else in_dtype(bias, torch.float32).contiguous()
    losses = x.new_empty(x.shape[0], dtype=torch.float32)
    dx = x.new_empty(x.shape if differentiates else (0, x.shape[1]), dtype=torch.float32)
    x, target = x.contiguous(), target.contiguous()
    for first in range(0, x.shape[0], TOKENS):
        here = slice(first, first + TOKENS)
        losses[here], part = _one_pass(x[here], weight, bias, target[here], differentiates, cpu)
        if part is not None:
            dx[here] = part
    return losses, dx


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel takes these tokens and this weight."""
    dtypes = (torch.float32, torch.bfloat16)
    return x.dtype in dtypes and weight.dtype in dtypes and weight.is_contiguous() and x.numel() > 0
