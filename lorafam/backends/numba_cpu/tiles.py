"""Products of a weight, 4-bit or dense, and many tokens: a piece of W is decoded (or copied) into the cache and
multiplied, then the next.

    forward     Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias        a part is some rows of W, its pieces follow one another along K
    backward    dx = (G ∘ c) W + Q A + start         a part is some columns of W, its pieces follow one another along N

A tile of sums is `height` weights by `width` tokens, in registers while a piece's terms are added up; W is decoded once
for up to `TOKENS` tokens. Sums of `TERMS` products are formed apart, in fp32; where tokens and outputs are bf16 and the
processor multiplies pairs of bf16, W is rounded to bf16, else it is fp32 as decoded. The low-rank part is always fp32.
"""

from __future__ import annotations

import torch
from numba import njit

from .decoding import APART, DENSE, DENSE_BF16, IN_ORDER, PAIRS
from .four_bit import Weight
from .memory import prefetch, store_float, value_at
from .processor import Processor
from .token_order import copy_registers

TOKENS = 512
TERMS = 128
# of W in a part: rows of the forward, columns of the backward
SPAN = 64


@njit
def copy_row(weight: int, start: int, count: int, out: int, lanes: int, narrow: int) -> None:
    """Elements start … of a dense weight to fp32 at `out`."""
    whole = count // lanes
    source = weight + start * (2 if narrow else 4)
    # the row's next piece, of which each line comes from far
    for line in range(0, count, 32 if narrow else 16):
        prefetch(source + (count + line) * (2 if narrow else 4))
    copy_registers(source, out, 4 * lanes, whole, lanes, narrow)
    for i in range(whole * lanes, count):
        store_float(out + 4 * i, value_at(source, i, narrow))


def shape_of(tokens: int, pairs: bool, cpu: Processor) -> tuple[int, int]:
    """Height of a tile and its registers of tokens."""
    groups = -(-tokens // cpu.lanes)
    # a half-filled tile costs as much as a full one; one register at a time is slower for pairs
    single = groups == 1 or (groups % 2 == 1 and not pairs)
    return (cpu.lanes, 1) if single else (cpu.rows, 2)


def order_of(x: torch.Tensor, weight: Weight, terms: int, cpu: Processor) -> int:
    """How W is decoded: in its order where rows don't start with a group."""
    if not weight.levels:
        return DENSE_BF16 if weight.block_bits else DENSE
    if weight.columns % (2 * cpu.lanes):
        return IN_ORDER
    return PAIRS if x.dtype == torch.bfloat16 and cpu.bf16 and terms % 2 == 0 else APART
