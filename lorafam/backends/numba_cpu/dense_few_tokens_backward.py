"""dx of a dense weight and few tokens (`dense_few_tokens.py`), and a low-rank product alone."""

from __future__ import annotations

import numpy as np
import torch

from . import parallel
from .compiled import compiled
from .dense_few_tokens import kind_of, tokens_at_once
from .memory import clear, load_float, store_float, store_value, value_at
from .multiply_dense import PAIRED, WIDE, WIDENED, add_dense_rows, add_shares
from .parallel import address, argument, my_scratch, next_part
from .processor import Processor

Tensor = torch.Tensor
# rows of W in a part, of a small and a large weight: each leaves a share behind
_FEW_ROWS, _MANY_ROWS = 64, 256
# rows that are added up in registers
_ROWS_AT_ONCE = 8
# sums that stay in the nearest cache
_SUMS = 4096
_COLUMNS_A_PART = 1024


@compiled
def _shares(lanes: int, tokens: int, kind: int, narrow: int, sources: int):
    size = 4 if kind == WIDE else 2
    halves = 0 if kind == WIDE else 1
    step = 2 * lanes if kind == PAIRED else lanes
    alone = WIDENED if kind == PAIRED else kind
    paired = 1 if kind == PAIRED else 0
    factor_size = 2 if kind == PAIRED else 4
    convert = 1 if kind == WIDENED and narrow else 0
    width = _SUMS // tokens

    def kernel(data: int) -> None:
        weight, features, columns, rows_a_part = (
            argument(data, 0),
            argument(data, 1),
            argument(data, 2),
            argument(data, 3),
        )
        grad, c, shares, count = argument(data, 4), argument(data, 5), argument(data, 6), argument(data, 7)
        # of one row, then of a part
        single = my_scratch(data)
        scaled = single + 4 * tokens
        padded = (count + tokens - 1) // tokens * tokens
        whole = columns // step * step
        part = next_part(data)
        while part >= 0 and sources:
            first = part * rows_a_part
            rows = min(rows_a_part, features - first)
            for token in range(0, count, tokens):
                total = shares + 4 * (part * padded + token) * columns
                clear(total, tokens * columns)
                last = min(tokens, count - token) - 1
                factors, stride = grad + (token * features + first) * factor_size, features * factor_size
                if c or convert:
                    factors, stride = scaled, rows_a_part * factor_size
                    for m in range(last + 1):
                        for row in range(rows):
                            value = value_at(grad, (token + m) * features + first + row, narrow)
                            if c:
                                value *= load_float(c + 4 * (first + row))
                            store_value(scaled + m * stride, row, value, paired)
                for column in range(0, columns, width):
                    here = min(width, whole - column)
                    row = 0
                    while row < rows:
                        at = (first + row) * columns + column
                        many = row + _ROWS_AT_ONCE <= rows
                        if many:
                            add_dense_rows(
                                weight + at * size,
                                columns * size,
                                here // step,
                                factors + row * factor_size,
                                stride,
                                last,
                                total + 4 * column,
                                4 * columns,
                                lanes,
                                _ROWS_AT_ONCE,
                                tokens,
                                kind,
                            )
                        else:
                            for m in range(last + 1):
                                store_float(single + 4 * m, value_at(factors + m * stride, row, paired))
                            add_dense_rows(
                                weight + at * size,
                                columns * size,
                                here // lanes,
                                single,
                                4,
                                last,
                                total + 4 * column,
                                4 * columns,
                                lanes,
                                1,
                                tokens,
                                alone,
                            )
                        row += _ROWS_AT_ONCE if many else 1
                for column in range(whole, columns):
                    for m in range(last + 1):
                        value = np.float32(0)
                        for row in range(rows):
                            left = value_at(factors + m * stride, row, paired)
                            value += left * value_at(weight, (first + row) * columns + column, halves)
                        store_float(total + 4 * (m * columns + column), value)
            part = next_part(data)

    return kernel


@compiled
def _add_up(lanes: int, narrow: int, sources: int):
    size = 2 if narrow else 4
    registers = 4

    def kernel(data: int) -> None:
        shares, parts, padded, columns = argument(data, 0), argument(data, 1), argument(data, 2), argument(data, 3)
        q, a, rank, start = argument(data, 4), argument(data, 5), argument(data, 6), argument(data, 7)
        out, count = argument(data, 8), argument(data, 9)
        part = next_part(data)
        while part >= 0 and sources:
            column, last = part * _COLUMNS_A_PART, min((part + 1) * _COLUMNS_A_PART, columns)
            while column < last:
                many = column + registers * lanes <= last
                for m in range(count):
                    at = m * columns + column
                    from_share, row = shares + 4 * at, q + 4 * m * rank
                    begun = start + 4 * at if start else 0
                    if many:
                        add_shares(
                            from_share,
                            4 * padded * columns,
                            parts,
                            row,
                            a + 4 * column,
                            4 * columns,
                            rank,
                            begun,
                            out + at * size,
                            lanes,
                            registers,
                            narrow,
                        )
                    else:
                        value = np.float32(0)
                        for share in range(parts):
                            value += load_float(from_share + 4 * share * padded * columns)
                        update = np.float32(0)
                        for j in range(rank):
                            update += load_float(row + 4 * j) * load_float(a + 4 * (j * columns + column))
                        value += update
                        if begun:
                            value += load_float(begun)
                        store_value(out, at, value, narrow)
                column += registers * lanes if many else 1
            part = next_part(data)

    return kernel


def backward(
    grad_y: Tensor,
    weight: Tensor,
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    start: Tensor | None,
    dx: Tensor,
    cpu: Processor,
) -> None:
    """dx [M, K] in the dtype of grad_y and weight; the rest fp32, all contiguous."""
    count, (features, columns) = grad_y.shape[0], weight.shape
    narrow = grad_y.dtype == torch.bfloat16
    tokens, kind = tokens_at_once(count), kind_of(weight, narrow, cpu)
    rows = _MANY_ROWS if features >= 8 * _MANY_ROWS else _FEW_ROWS
    parts, padded = -(-features // rows), -(-count // tokens) * tokens
    shares = parallel.kept("shares", 4 * parts * padded * columns).data_ptr()
    arguments = (
        weight.data_ptr(),
        features,
        columns,
        rows,
        grad_y.data_ptr(),
        address(c),
        shares,
        count,
    )
    parallel.run(_shares(cpu.lanes, tokens, kind, int(narrow)), arguments, parts, 4 * tokens * (rows + 1))
    rank = 0 if Q is None else Q.shape[1]
    last = (address(Q), address(A), rank, address(start), dx.data_ptr(), count)
    entry = _add_up(cpu.lanes, int(narrow))
    parallel.run(entry, (shares, parts, padded, columns, *last), -(-columns // _COLUMNS_A_PART))


def add_low_rank(Q: Tensor, A: Tensor, start: Tensor | None, out: Tensor, cpu: Processor) -> None:
    """out [M, K] = Q A + start, in fp32; all contiguous."""
    count, columns = out.shape
    arguments = (0, 0, 0, columns, Q.data_ptr(), A.data_ptr(), Q.shape[1], address(start), out.data_ptr(), count)
    parallel.run(_add_up(cpu.lanes, 0), arguments, -(-columns // _COLUMNS_A_PART))
