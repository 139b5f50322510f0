"""One step of AdamW with 8-bit block-wise states (Dettmers et al., arXiv 2110.02861), in one pass over blocks of 256.

    m = β1 m + (1 − β1) g,  v = β2 v + (1 − β2) g²,  p = (1 − lr λ) p − lr/(1 − β1^t) · m / (√v / √(1 − β2^t) + ε)

m and v are decoded from codes times their block's absmax, used in fp32 and encoded again: the nearest of the 256
dynamic levels, signed for m, unsigned for v, to the value over the block's new absmax; a tie takes the lower level.

A value's upper 16 bits say its level up to one bound, since no two bounds share them: a table instead of a search.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from .compiled import kernel
from .threads import parallel_ranges

Tensor = torch.Tensor

BLOCK = 256
# blocks for which another thread is worth its start
_GRAIN = 64
_ONE = np.float32(1)
_UPPER = np.uint32(16)
_MAGNITUDE = np.uint32(0x7FFFFFFF)


def adamw_8bit(
    parameter: Tensor,
    gradient: Tensor,
    states: tuple[Tensor, Tensor, Tensor, Tensor],
    levels: tuple[Tensor, Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """Updates `parameter` fp32 [n] and `states` in place: m's codes uint8 [n], its absmax fp32 [ceil(n / 256)], then
    v's. `levels`: m's and v's, fp32 [256]. `step` counts from 1. All contiguous, on the CPU.
    """
    scalars = [
        np.float32(value)
        for value in (
            beta1,
            1 - beta1,
            beta2,
            1 - beta2,
            1 - lr * weight_decay,
            lr / (1 - beta1**step),
            math.sqrt(1 - beta2**step),
            eps,
        )
    ]
    arrays = [tensor.view(-1).numpy() for tensor in (parameter, gradient, *states)]
    tables = [table for kind in levels for table in _tables(kind)]
    parallel_ranges(lambda first, last: _update(*arrays, *tables, *scalars, first, last), states[1].numel(), _GRAIN)


@functools.cache
def _tables(levels: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The levels; the bounds between them, and infinity; for the upper 16 bits of a value, how many bounds lie below
    the least value that has them.
    """
    values = levels.numpy()
    bounds = np.append((values[:-1] + values[1:]) / np.float32(2), np.float32(np.inf))
    upper = np.arange(1 << 16, dtype=np.uint32)
    # of negative values the least has all lower bits set
    least = (upper << _UPPER | np.where(upper < 1 << 15, 0, 0xFFFF).astype(np.uint32)).view(np.float32)
    below = np.searchsorted(bounds[:-1], least).astype(np.uint8)
    return values, bounds, below


@kernel
def _update(
    parameter: np.ndarray,
    gradient: np.ndarray,
    m_codes: np.ndarray,
    m_absmax: np.ndarray,
    v_codes: np.ndarray,
    v_absmax: np.ndarray,
    m_levels: np.ndarray,
    m_bounds: np.ndarray,
    m_below: np.ndarray,
    v_levels: np.ndarray,
    v_bounds: np.ndarray,
    v_below: np.ndarray,
    beta1: np.float32,
    rest1: np.float32,
    beta2: np.float32,
    rest2: np.float32,
    decay: np.float32,
    rate: np.float32,
    correction: np.float32,
    eps: np.float32,
    first: int,
    last: int,
) -> None:
    m, v = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    m_words, v_words, largest = m.view(np.uint32), v.view(np.uint32), np.empty(1, np.uint32)
    for block in range(first, last):
        # slices, indexed from 0: LLVM makes vectors of these loops
        start, stop = block * BLOCK, min((block + 1) * BLOCK, parameter.size)
        p, g, m_code, v_code = parameter[start:stop], gradient[start:stop], m_codes[start:stop], v_codes[start:stop]
        m_scale, v_scale = m_absmax[block], v_absmax[block]
        for i in range(m_code.size):
            m[i] = m_levels[m_code[i]] * m_scale
        for i in range(v_code.size):
            v[i] = v_levels[v_code[i]] * v_scale
        for i in range(p.size):
            m[i] = m[i] * beta1 + g[i] * rest1
        for i in range(p.size):
            v[i] = v[i] * beta2 + g[i] * g[i] * rest2
        for i in range(p.size):
            p[i] = p[i] * decay - rate * (m[i] / (np.sqrt(v[i]) / correction + eps))
        m_absmax[block] = _encode(m, m_words, largest, m_code, m_bounds, m_below)
        v_absmax[block] = _encode(v, v_words, largest, v_code, v_bounds, v_below)


@kernel
def _encode(
    values: np.ndarray,
    words: np.ndarray,
    largest: np.ndarray,
    codes: np.ndarray,
    bounds: np.ndarray,
    below: np.ndarray,
) -> np.float32:
    """Codes of a block's values (`words`: their bits), which it divides by their absmax; returns that. A NaN makes
    absmax NaN, so the block stays NaN.
    """
    most = np.uint32(0)
    for i in range(codes.size):
        # the bits of |x| are ordered as |x| is, NaN above infinity
        magnitude = words[i] & _MAGNITUDE
        if magnitude > most:
            most = magnitude
    largest[0] = most
    absmax = largest.view(np.float32)[0]
    scale = absmax if absmax > 0 else _ONE
    for i in range(codes.size):
        values[i] = values[i] / scale
    for i in range(codes.size):
        found = below[words[i] >> _UPPER]
        codes[i] = found + (values[i] > bounds[found])
    return absmax
