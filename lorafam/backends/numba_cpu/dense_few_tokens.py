"""Products of a dense weight and few tokens: W is read once, and its rows are used in registers.

    forward     Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias         a part is some rows of W; dot products along them
    backward    dx = (G ∘ c) W + Q A + start          the same parts; each one's share of dx is written
                                                      apart, and the shares are added in order

W [N, K] contiguous; tokens in its dtype, fp32 or bf16, or in fp32. Sums in fp32: of the forward over one row's lanes,
of the backward over a part's rows.
"""

from __future__ import annotations

import numpy as np
import torch

from . import parallel
from .compiled import compiled
from .memory import clear, load_float, store_float, store_value, value_at
from .multiply_dense import PAIRED, WIDE, WIDENED, dot_dense_rows
from .parallel import address, argument, my_scratch, next_part
from .processor import Processor

Tensor = torch.Tensor
# by their dtype: with more the platform's product is as fast
FORWARD_TOKENS = {torch.float32: 32, torch.bfloat16: 8}
# the same of dx, of a weight that no cache holds
BACKWARD_TOKENS = {torch.float32: 32, torch.bfloat16: 16}
_LARGE = 1 << 22
# rows of W in a part: a multiple of all that are taken at once
_ROWS_A_PART = 96
# bytes of tokens that stay in the nearest cache
NEAR = 1 << 15
# of W at once, by tokens at once: as many as registers hold sums of
_ROWS = ({1: 8, 4: 2, 8: 1}, {1: 8, 4: 6, 8: 3})


def suits(weight: Tensor, dtype: torch.dtype, count: int, backward: bool = False) -> bool:
    """Whether `count` tokens of a dtype go this way: few, but some."""
    most = BACKWARD_TOKENS if backward and weight.numel() >= _LARGE else FORWARD_TOKENS
    few = 0 < count <= most.get(dtype, 0) and weight.dtype in (dtype, torch.bfloat16)
    return few and weight.is_contiguous() and weight.numel() > 0


@compiled
def _forward(lanes: int, rows: int, tokens: int, kind: int, narrow: int, sources: int):
    size = 4 if kind == WIDE else 2
    halves = 0 if kind == WIDE else 1
    x_size = 2 if kind == PAIRED else 4
    x_narrow = 1 if kind == PAIRED else 0
    step = 2 * lanes if kind == PAIRED else lanes
    piece = NEAR // (tokens * x_size)

    def kernel(data: int) -> None:
        weight, features, columns = argument(data, 0), argument(data, 1), argument(data, 2)
        x, b_hat, p, rank = argument(data, 3), argument(data, 4), argument(data, 5), argument(data, 6)
        c, bias, out, count = argument(data, 7), argument(data, 8), argument(data, 9), argument(data, 10)
        sums = my_scratch(data)
        if kind == WIDENED and narrow:
            # every thread its own: less than waiting for one another
            wide = sums + 4 * _ROWS_A_PART * tokens
            for i in range(count * columns):
                store_float(wide + 4 * i, value_at(x, i, 1))
            x = wide
        steps = columns // step
        part = next_part(data)
        while part >= 0 and sources:
            start = part * _ROWS_A_PART
            last = min(start + _ROWS_A_PART, features)
            for token in range(0, count, tokens):
                here = min(tokens, count - token)
                x_here = x + token * columns * x_size
                p_here = p + 4 * token * rank
                clear(sums, (last - start) * tokens)
                for column in range(0, max(1, steps * step), piece):
                    here_steps = min(piece // step, steps - column // step)
                    row = start
                    while row < last:
                        at_once = rows if row + rows <= last else 1
                        at = row * columns + column
                        if at_once == rows:
                            dot_dense_rows(
                                weight + at * size,
                                columns * size,
                                here_steps,
                                x_here + column * x_size,
                                columns * x_size,
                                here - 1,
                                b_hat + 4 * row * rank,
                                p_here,
                                rank,
                                0 if column else rank // lanes,
                                sums + 4 * (row - start) * tokens,
                                lanes,
                                rows,
                                tokens,
                                kind,
                            )
                        else:
                            dot_dense_rows(
                                weight + at * size,
                                columns * size,
                                here_steps,
                                x_here + column * x_size,
                                columns * x_size,
                                here - 1,
                                b_hat + 4 * row * rank,
                                p_here,
                                rank,
                                0 if column else rank // lanes,
                                sums + 4 * (row - start) * tokens,
                                lanes,
                                1,
                                tokens,
                                kind,
                            )
                        row += at_once
                for n in range(start, last):
                    for m in range(here):
                        value = load_float(sums + 4 * ((n - start) * tokens + m))
                        for k in range(steps * step, columns):
                            left = value_at(weight, n * columns + k, halves)
                            value += left * value_at(x_here, m * columns + k, x_narrow)
                        update = np.float32(0)
                        for j in range(rank // lanes * lanes, rank):
                            left = load_float(b_hat + 4 * (n * rank + j))
                            update += left * load_float(p_here + 4 * (m * rank + j))
                        value += update
                        if c:
                            value *= load_float(c + 4 * n)
                        if bias:
                            value += load_float(bias + 4 * n)
                        store_value(out, (token + m) * features + n, value, narrow)
            part = next_part(data)

    return kernel


def forward(
    x: Tensor,
    weight: Tensor,
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
    y: Tensor,
    cpu: Processor,
) -> None:
    """y [M, N] in the dtype of x and weight; the rest fp32, all contiguous."""
    count, (features, columns) = x.shape[0], weight.shape
    narrow = x.dtype == torch.bfloat16
    tokens, kind = tokens_at_once(count), kind_of(weight, narrow, cpu)
    rows = _ROWS[cpu.lanes == 16][tokens]
    rank = 0 if P is None else P.shape[1]
    arguments = (
        weight.data_ptr(),
        features,
        columns,
        x.data_ptr(),
        address(B_hat),
        address(P),
        rank,
        address(c),
        address(bias),
        y.data_ptr(),
        count,
    )
    scratch = 4 * (_ROWS_A_PART * tokens + (count * columns if kind == WIDENED and narrow else 0))
    entry = _forward(cpu.lanes, rows, tokens, kind, int(narrow))
    parallel.run(entry, arguments, -(-features // _ROWS_A_PART), scratch)


def tokens_at_once(count: int) -> int:
    return next((size for size in (1, 4) if size >= count), 8)


def kind_of(weight: Tensor, narrow: bool, cpu: Processor) -> int:
    return WIDE if weight.dtype == torch.float32 else PAIRED if narrow and cpu.bf16 else WIDENED
