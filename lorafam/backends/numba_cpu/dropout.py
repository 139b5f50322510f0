"""drop(x): kept where Philox4x32-10's word is at least floor(p 2³²), divided by 1 − p; see `reference.dropout`."""

from __future__ import annotations

import numba
import numpy as np
import torch

from ...ops.library import accumulate_dtype
from .compiled import kernel
from .threads import parallel_ranges

_GRAIN = 1 << 13
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def dropout(x: torch.Tensor, seed: torch.Tensor, dropout_p: float) -> torch.Tensor:
    """drop(x) [M, K] in x's dtype; narrower dtypes are rounded once from fp32."""
    dtype = accumulate_dtype(x.dtype)
    return dropped(x.detach().to(dtype), seed, dropout_p).to(x.dtype)


def dropped(x: torch.Tensor, seed: torch.Tensor, dropout_p: float) -> torch.Tensor:
    """drop(x) for x in fp32 or fp64."""
    source = x.detach().contiguous().numpy()
    result = torch.empty(source.shape, dtype=x.dtype)
    out = result.numpy()
    key = np.uint64(int(seed) & 0xFFFFFFFFFFFFFFFF)
    threshold = np.uint64(int(dropout_p * 2**32))
    scale = source.dtype.type(1 / (1 - dropout_p))
    columns = max(1, source.shape[1])
    parallel_ranges(
        lambda start, stop: _drop_rows(source, out, start, stop, key, threshold, scale),
        source.shape[0],
        max(1, _GRAIN // columns),
    )
    return result


@numba.njit(inline="always")
def _philox(c0, c1, c2, c3, k0, k1):
    for _ in range(10):
        product0, product1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@kernel
def _drop_rows(x, out, first, end, seed, threshold, scale):
    columns = x.shape[1]
    groups = (columns + 3) // 4
    key0, key1 = seed & _LOW, seed >> _SHIFT
    # of a row at a time: two loops that LLVM makes vectors of, one over counters and one over columns
    words = np.empty(4 * groups, np.uint32)
    for row in range(first, end):
        low, high = np.uint64(row) & _LOW, np.uint64(row) >> _SHIFT
        for group in range(groups):
            w0, w1, w2, w3 = _philox(low, np.uint64(group), high, np.uint64(0), key0, key1)
            words[4 * group] = w0
            words[4 * group + 1] = w1
            words[4 * group + 2] = w2
            words[4 * group + 3] = w3
        for column in range(columns):
            kept = np.uint64(words[column]) >= threshold
            out[row, column] = x[row, column] * scale if kept else x.dtype.type(0)
