"""W [N, K] from codes, for who wants it whole: formed in fp32, rounded once to the dtype asked for."""

from __future__ import annotations

import torch

from ...ops.by_storage import Storage
from .four_bit import describe
from .panels import decode, panels


def dequantize_4bit(
    codes: torch.Tensor, scales: list[torch.Tensor], layout: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """W [N, K] in `dtype`."""
    storage = Storage(codes, scales, layout)
    weight = torch.empty(storage.shape, dtype=dtype)
    if dtype != torch.float32:
        for first, end, rows in panels(storage):
            weight[first:end] = rows
        return weight
    decode(describe(storage), 0, weight.numel(), weight)
    return weight
