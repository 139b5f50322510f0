"""W [N, K] from codes, for who wants it whole: formed in fp32, rounded once to the dtype asked for."""

from __future__ import annotations

import torch

from .decode import as_arrays, decode_run
from .panels import panels
from .threads import parallel_ranges

_GRAIN = 1 << 15


def dequantize_4bit(
    codes: torch.Tensor, scales: list[torch.Tensor], layout: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """W [N, K] in `dtype`."""
    shape = tuple(layout[:2])
    weight = torch.empty(shape, dtype=dtype)
    if dtype != torch.float32:
        for first, end, rows in panels(codes, scales, layout):
            weight[first:end] = rows
        return weight
    arrays, out = as_arrays(codes, scales, layout), weight.view(-1).numpy()
    parallel_ranges(lambda start, stop: decode_run(arrays, start, stop, out[start:stop]), out.size, _GRAIN)
    return weight
