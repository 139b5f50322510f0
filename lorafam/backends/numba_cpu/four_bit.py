"""A 4-bit weight in memory as the kernels take it, and runs of it decoded: what all of them share.

position    of an element in the flattened row-major weight
group       2 · lanes elements from a multiple of that many on; they have one block's scale
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from ...kernels.formats import FORMATS
from ...ops.by_storage import Layout, Storage
from .decoding import IN_ORDER, decode_groups, decode_row_pairs
from .memory import load_byte, load_float, store_float
from .multiply_codes import NESTED_BITS
from .parallel import argument

_LEVELS = tuple(np.array(row.levels, dtype=np.float32) for row in FORMATS)
_LEVELS_AT = tuple(levels.ctypes.data for levels in _LEVELS)
# gain · level and, after them, 1 / gain: what is rounded to bf16 before it meets its scale
_GAINED = tuple(
    np.append(levels * np.float32(gain), np.float32(1 / gain)).astype(np.float32)
    for levels, gain in zip(_LEVELS, (row.gain("bf16") for row in FORMATS), strict=True)
)
_GAINED_AT = {at: gained.ctypes.data for at, gained in zip(_LEVELS_AT, _GAINED, strict=True)}


class Weight(NamedTuple):
    """Addresses, and log2 of the block size; `absmax` is that of the offset under double quantisation."""

    codes: int
    levels: int
    absmax: int
    absmax_codes: int
    nested_absmax: int
    nested_levels: int
    block_bits: int
    rows: int
    columns: int


WEIGHT = len(Weight._fields)


def describe(weight: Storage) -> Weight:
    """The weight of an op's arguments; the tensors must live as long as it is used."""
    data, scales, layout = weight
    shape = Layout(*layout)
    if shape.nested_block_size:
        absmax_codes, nested_absmax, nested_levels, absmax = (scale.data_ptr() for scale in scales)
    else:
        absmax, absmax_codes, nested_absmax, nested_levels = scales[0].data_ptr(), 0, 0, 0
    return Weight(
        data.data_ptr(),
        _LEVELS_AT[shape.quant_type],
        absmax,
        absmax_codes,
        nested_absmax,
        nested_levels,
        shape.block_size.bit_length() - 1,
        shape.out_features,
        shape.in_features,
    )


def gained(weight: Weight) -> Weight:
    """The weight with gain · level for its levels (`kernels.formats`), and 1 / gain behind them."""
    return weight._replace(levels=_GAINED_AT[weight.levels])


def dense(weight: torch.Tensor) -> Weight:
    """A dense weight [N, K], contiguous, in fp32 or bf16, as the kernels for many tokens take it: no levels, a size in
    the block's place.
    """
    return Weight(weight.data_ptr(), 0, 0, 0, 0, 0, int(weight.dtype == torch.bfloat16), *weight.shape)


@njit
def weight_at(data: int, at: int) -> Weight:
    """The arguments of a kernel from `at` on."""
    return Weight(
        argument(data, at),
        argument(data, at + 1),
        argument(data, at + 2),
        argument(data, at + 3),
        argument(data, at + 4),
        argument(data, at + 5),
        argument(data, at + 6),
        argument(data, at + 7),
        argument(data, at + 8),
    )


@njit
def weight_of(data: int) -> Weight:
    """The first arguments of a kernel."""
    return weight_at(data, 0)


@njit
def own(data: int, index: int) -> int:
    """A kernel's argument of that index after the weight."""
    return argument(data, WEIGHT + index)


@njit
def block_scale(weight: Weight, block: int) -> float:
    """absmax of a block, rounded after the product and after the sum as bitsandbytes has it."""
    if weight.absmax_codes == 0:
        return load_float(weight.absmax + 4 * block)
    level = load_float(weight.nested_levels + 4 * np.int64(load_byte(weight.absmax_codes + block)))
    scaled = level * load_float(weight.nested_absmax + 4 * (block >> NESTED_BITS))
    return scaled + load_float(weight.absmax)


@njit
def element(weight: Weight, position: int, scale: float) -> float:
    byte = np.int64(load_byte(weight.codes + (position >> 1)))
    return load_float(weight.levels + 4 * (byte >> 4 if position & 1 == 0 else byte & 15)) * scale


@njit
def decode_in_order(weight: Weight, start: int, stop: int, out: int, lanes: int) -> None:
    """Elements start … stop, one after the other, to fp32 at `out`; any start, also an odd one."""
    position = start
    while position < stop:
        block = position >> weight.block_bits
        end = min((block + 1) << weight.block_bits, stop)
        scale = block_scale(weight, block)
        if position & 1 == 1:
            store_float(out, element(weight, position, scale))
            position += 1
            out += 4
        while position + 2 * lanes <= end:
            decode_groups(weight.codes + (position >> 1), weight.levels, scale, out, 0, 0, 1, lanes, IN_ORDER)
            position += 2 * lanes
            out += 8 * lanes
        while position < end:
            store_float(out, element(weight, position, scale))
            position += 1
            out += 4


# inlined: a call for each row takes a tenth of 16 tokens
@njit(forceinline=True)
def _groups(
    weight: Weight, at: int, out: int, odd_offset: int, group_bytes: int, count: int, lanes: int, order: int
) -> None:
    scale = block_scale(weight, at >> weight.block_bits)
    decode_groups(weight.codes + (at >> 1), weight.levels, scale, out, odd_offset, group_bytes, count, lanes, order)


@njit(forceinline=True)
def _groups_of_two_rows(
    weight: Weight, at: int, out: int, odd_offset: int, group_bytes: int, count: int, lanes: int
) -> None:
    below = at + weight.columns
    scale, other = block_scale(weight, at >> weight.block_bits), block_scale(weight, below >> weight.block_bits)
    codes = weight.codes
    decode_row_pairs(
        codes + (at >> 1), scale, codes + (below >> 1), other, weight.levels, out, odd_offset, group_bytes, count, lanes
    )


@njit(forceinline=True)
def _whole(weight: Weight) -> bool:
    """Whether 64 weights from a multiple of 64 on have one scale, in every row."""
    return weight.block_bits >= 6 and weight.columns % 64 == 0


@njit(forceinline=True)
def decode_run(
    weight: Weight,
    start: int,
    stop: int,
    out: int,
    odd_offset: int,
    group_bytes: int,
    groups_of_64: int,
    lanes: int,
    order: int,
) -> None:
    """Whole groups start … stop as `decode_groups` has them; 64 weights at a time where they have one scale."""
    if _whole(weight):
        for at in range(start, stop, 64):
            _groups(weight, at, out, odd_offset, group_bytes, groups_of_64, lanes, order)
            out += groups_of_64 * group_bytes
    else:
        for at in range(start, stop, 2 * lanes):
            _groups(weight, at, out, odd_offset, group_bytes, 1, lanes, order)
            out += group_bytes


@njit(forceinline=True)
def decode_run_of_two_rows(
    weight: Weight, start: int, stop: int, out: int, odd_offset: int, group_bytes: int, groups_of_64: int, lanes: int
) -> None:
    """The same of `decode_row_pairs`: start … stop, and the same columns of the next row."""
    if _whole(weight):
        for at in range(start, stop, 64):
            _groups_of_two_rows(weight, at, out, odd_offset, group_bytes, groups_of_64, lanes)
            out += groups_of_64 * group_bytes
    else:
        for at in range(start, stop, 2 * lanes):
            _groups_of_two_rows(weight, at, out, odd_offset, group_bytes, 1, lanes)
            out += group_bytes
