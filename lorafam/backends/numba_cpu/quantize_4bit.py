"""4-bit codes and block scales of a weight, and the second quantisation of those scales: the formulae of
`ops.quantize_4bit`.

A block is widened to fp32 in a buffer that stays in the first-level cache, so a bf16 or fp16 weight is read once and
never copied. Bit-identical to the eager backend: the same fp32 operations in the same order, no contraction.
"""

from __future__ import annotations

import numpy as np
import torch

from ...ops.by_storage import NESTED_BLOCK_SIZE
from ...ops.quantize_4bit import ABSMAX_STEPS, SMALLEST_ABSMAX, level_bounds
from .compiled import kernel
from .threads import parallel_ranges

Tensor = torch.Tensor

_FLOAT32, _BFLOAT16, _FLOAT16 = 0, 1, 2
_KINDS = {torch.float32: _FLOAT32, torch.bfloat16: _BFLOAT16, torch.float16: _FLOAT16}
# elements for which another thread is worth its start
_GRAIN = 1 << 16
_SMALLEST = np.float32(SMALLEST_ABSMAX)
_STEPS = np.float32(ABSMAX_STEPS)
_ONE, _TWO, _HALF = np.float32(1), np.float32(2), np.float32(0.5)
# fp16's exponent bias is 15, fp32's 127: this puts the exponent right, and is exact.
_FLOAT16_SCALE = np.float32(2.0**112)


def quantize_4bit(weight: Tensor, block_size: int, quant_type: str) -> tuple[Tensor, Tensor]:
    """Codes uint8 [ceil(NK/2), 1] and absmax fp32 [ceil(NK / block)] of W [N, K]; a missing last nibble is 0's code."""
    words = torch.uint32 if weight.dtype == torch.float32 else torch.uint16
    source = weight.detach().reshape(-1).view(words).numpy()
    bounds, order = level_bounds(quant_type)
    codes = torch.empty(((source.size + 1) // 2, 1), dtype=torch.uint8)
    absmax = torch.empty(-(-source.size // block_size), dtype=torch.float32)
    kind = _KINDS[weight.dtype]
    arguments = (source, kind, bounds.numpy(), order.numpy(), block_size, codes[:, 0].numpy(), absmax.numpy())
    parallel_ranges(lambda first, last: _quantize_blocks(*arguments, first, last), absmax.numel(), _GRAIN // block_size)
    return codes, absmax


def quantize_absmax(absmax: Tensor, nested_levels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [blocks], nested_absmax fp32 [ceil(blocks / 256)] and offset fp32 [] of absmax fp32 [blocks]."""
    # torch's own sum, which bitsandbytes uses: another order of summation gives other bits
    offset = absmax.mean()
    centred = absmax - offset
    bounds = (nested_levels[:-1] + nested_levels[1:]) / 2
    codes = torch.empty(absmax.numel(), dtype=torch.uint8)
    nested_absmax = torch.empty(-(-absmax.numel() // NESTED_BLOCK_SIZE), dtype=torch.float32)
    arguments = (centred.numpy(), bounds.numpy(), codes.numpy(), nested_absmax.numpy())
    parallel_ranges(
        lambda first, last: _quantize_absmax(*arguments, first, last),
        nested_absmax.numel(),
        _GRAIN // NESTED_BLOCK_SIZE,
    )
    return codes, nested_absmax, offset


@kernel
def _quantize_blocks(
    source: np.ndarray,
    kind: int,
    bounds: np.ndarray,
    order: np.ndarray,
    block_size: int,
    codes: np.ndarray,
    absmax: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Blocks first … last - 1 of the flattened weight, whose fp32, bf16 or fp16 values are read as words of bits."""
    words = np.empty(block_size, np.uint32)
    values = words.view(np.float32)
    places = np.empty(block_size, np.uint8)
    for block in range(first, last):
        start = block * block_size
        length = min(block_size, source.size - start)
        _widen(source[start : start + length], kind, words)
        largest = np.uint32(0)
        for i in range(length):
            # the bits of |w| are ordered as |w| is
            largest = max(largest, words[i] & np.uint32(0x7FFFFFFF))
        scale = _as_float(largest)
        if length == block_size:
            factor = _ONE / max(scale, _SMALLEST)
            for i in range(length):
                values[i] *= factor
        else:
            scale = max(scale, _SMALLEST)
            for i in range(length):
                values[i] /= scale
            if length % 2:
                values[length] = 0.0
        absmax[block] = scale
        padded = length + length % 2
        places[:padded] = 0
        for k in range(bounds.size):
            for i in range(padded):
                places[i] += np.uint8(values[i] > bounds[k])
        for i in range(padded // 2):
            codes[start // 2 + i] = order[places[2 * i]] << 4 | order[places[2 * i + 1]]


@kernel
def _widen(source: np.ndarray, kind: int, words: np.ndarray) -> None:
    """The bits of fp32, bf16 or fp16 values as those of the same values in fp32."""
    if kind == _FLOAT32:
        for i in range(source.size):
            words[i] = source[i]
    elif kind == _BFLOAT16:
        for i in range(source.size):
            words[i] = np.uint32(source[i]) << np.uint32(16)
    else:
        for i in range(source.size):
            word = np.uint32(source[i])
            words[i] = (word & np.uint32(0x8000)) << np.uint32(16) | (word & np.uint32(0x7FFF)) << np.uint32(13)
        values = words.view(np.float32)
        for i in range(source.size):
            values[i] *= _FLOAT16_SCALE


@kernel
def _as_float(word: np.uint32) -> np.float32:
    return np.array([word], np.uint32).view(np.float32)[0]


@kernel
def _quantize_absmax(
    centred: np.ndarray, bounds: np.ndarray, codes: np.ndarray, nested_absmax: np.ndarray, first: int, last: int
) -> None:
    """Nested blocks first … last - 1 of 256 centred block scales each."""
    for block in range(first, last):
        start = block * NESTED_BLOCK_SIZE
        stop = min(start + NESTED_BLOCK_SIZE, centred.size)
        scale = np.float32(0)
        for i in range(start, stop):
            scale = max(scale, abs(centred[i]))
        nested_absmax[block] = scale
        factor = _ONE / scale
        for i in range(start, stop):
            codes[i] = _nearest_on_grid(centred[i] * factor, bounds)


@kernel
def _nearest_on_grid(value: np.float32, bounds: np.ndarray) -> np.integer | int:
    """The number of bounds below the grid point nearest to `value`; 0 for NaN (the 0 · inf of a block of zeros)."""
    if not value > -_ONE:
        return 0
    step = np.int32((min(value, _ONE) + _ONE) * _HALF * _STEPS + _HALF)
    rounded = np.float32(step) * _TWO / _STEPS - _ONE
    return np.searchsorted(bounds, rounded)
