"""A 4-bit weight in memory as the kernels take it, and runs of it decoded: what all of them share.

position    of an element in the flattened row-major weight
group       2 · lanes elements from a multiple of that many on; they have one block's scale
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numba import njit

from ...kernels.nf4_codebook import FP4_LEVELS, NF4_LEVELS
from ...ops.by_storage import Layout
from .team import argument
from .vector import IN_ORDER, NESTED_BITS, decode_groups, load_byte, load_float, store_float

_LEVELS = tuple(np.array(levels, dtype=np.float32) for levels in (NF4_LEVELS, FP4_LEVELS))
# arguments of a kernel that describe the weight
WEIGHT = 9


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


def describe(data: torch.Tensor, scales: list[torch.Tensor], layout: list[int]) -> Weight:
    """The weight of an op's arguments; the tensors must live as long as it is used."""
    shape = Layout(*layout)
    if shape.nested_block_size:
        absmax_codes, nested_absmax, nested_levels, absmax = (scale.data_ptr() for scale in scales)
    else:
        absmax, absmax_codes, nested_absmax, nested_levels = scales[0].data_ptr(), 0, 0, 0
    return Weight(
        data.data_ptr(),
        _LEVELS[shape.quant_type].ctypes.data,
        absmax,
        absmax_codes,
        nested_absmax,
        nested_levels,
        shape.block_size.bit_length() - 1,
        shape.out_features,
        shape.in_features,
    )


@njit
def weight_of(data: int) -> Weight:
    """The first arguments of a kernel."""
    return Weight(
        argument(data, 0),
        argument(data, 1),
        argument(data, 2),
        argument(data, 3),
        argument(data, 4),
        argument(data, 5),
        argument(data, 6),
        argument(data, 7),
        argument(data, 8),
    )


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
