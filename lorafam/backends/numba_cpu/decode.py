"""A run of a 4-bit weight as fp32: w = level[code] · absmax of its block, bit-identical to bitsandbytes.

A run is any part of the flattened row-major weight, so K need not be a multiple of the block, nor even. Double
quantisation is undone on the way: absmax = nested_level[absmax_code] · nested_absmax + offset, rounded after the
product and after the sum.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch

from ...kernels.nf4_codebook import FP4_LEVELS, NF4_LEVELS
from ...ops.by_storage import NESTED_BLOCK_SIZE, Layout
from .vector import LANES, decode_vectors

LANE_BITS = LANES.bit_length() - 1
NESTED_BITS = NESTED_BLOCK_SIZE.bit_length() - 1
_LEVELS = tuple(np.array(levels, dtype=np.float32) for levels in (NF4_LEVELS, FP4_LEVELS))


class Codes(NamedTuple):
    """A 4-bit weight as the kernels take it, its block size as a power of two: a division costs more than a block.

    Without double quantisation `absmax_codes` and the nested arrays are unused.
    """

    codes: np.ndarray
    levels: np.ndarray
    block_bits: int
    absmax: np.ndarray
    absmax_codes: np.ndarray
    nested_absmax: np.ndarray
    nested_levels: np.ndarray
    nested: bool


_NO_FLOATS, _NO_CODES = np.empty(0, dtype=np.float32), np.empty(0, dtype=np.uint8)


def as_arrays(data: torch.Tensor, scales: list[torch.Tensor], layout: list[int]) -> Codes:
    """The arguments of an op as arrays that share their memory. `absmax` is the offset under double quantisation."""
    shape = Layout(*layout)
    arrays = [scale.detach().reshape(-1).numpy() for scale in scales]
    codes = data.detach().reshape(-1).numpy()
    levels = _LEVELS[shape.quant_type]
    block_bits = shape.block_size.bit_length() - 1
    if not shape.nested_block_size:
        return Codes(codes, levels, block_bits, arrays[0], _NO_CODES, _NO_FLOATS, _NO_FLOATS, False)
    absmax_codes, nested_absmax, nested_levels, offset = arrays
    return Codes(codes, levels, block_bits, offset, absmax_codes, nested_absmax, nested_levels, True)


def kernel(function):
    """Compiled on first use, kept on disk, run without the interpreter's lock, in IEEE arithmetic."""
    return numba.njit(nogil=True, cache=True, error_model="numpy")(function)


@kernel
def _decode_span(
    codes, levels, block_bits, absmax, absmax_codes, nested_absmax, nested_levels, nested, start, stop, out, at
):
    """Elements start … stop into out[at:]. Takes the arrays apart: out of a tuple each counts a reference, which in a
    loop costs more than a block.
    """
    position, shift = start, at - start
    while position < stop:
        block = position >> block_bits
        end = min((block + 1) << block_bits, stop)
        if nested:
            scaled = nested_levels[absmax_codes[block]] * nested_absmax[block >> NESTED_BITS]
            scale = scaled + absmax[0]
        else:
            scale = absmax[block]
        if position & 1 == 1:
            out[position + shift] = levels[codes[position >> 1] & 15] * scale
            position += 1
        if LANES:
            vectors = (end - position) >> LANE_BITS
            decode_vectors(codes, position >> 1, out, position + shift, levels, scale, vectors)
            position += vectors << LANE_BITS
        while position < end:
            byte = np.int64(codes[position >> 1])
            out[position + shift] = levels[byte >> 4 if position & 1 == 0 else byte & 15] * scale
            position += 1


@kernel
def decode_run(weight, start, stop, out):
    """Elements start … stop of the flattened weight into out fp32 [stop - start]."""
    codes, levels, block_bits, absmax, absmax_codes, nested_absmax, nested_levels, nested = weight
    _decode_span(
        codes, levels, block_bits, absmax, absmax_codes, nested_absmax, nested_levels, nested, start, stop, out, 0
    )


@kernel
def decode_planes(weight, columns, terms, first, end, start, stop, out):
    """Rows start … stop of the panel first … end, `terms` columns to a plane: out fp32 holds one contiguous
    [end - first, terms] after another, the last plane narrower.
    """
    codes, levels, block_bits, absmax, absmax_codes, nested_absmax, nested_levels, nested = weight
    for row in range(start, stop):
        for column in range(0, columns, terms):
            width = min(terms, columns - column)
            element = row * columns + column
            at = (end - first) * column + (row - first) * width
            _decode_span(
                codes,
                levels,
                block_bits,
                absmax,
                absmax_codes,
                nested_absmax,
                nested_levels,
                nested,
                element,
                element + width,
                out,
                at,
            )
