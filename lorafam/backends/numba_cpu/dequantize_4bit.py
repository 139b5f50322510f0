"""W [N, K] from codes, for who wants it whole: formed in fp32, rounded once to the dtype asked for."""

from __future__ import annotations

import torch

from ...ops.by_storage import Layout
from .four_bit import describe
from .panels import decode, panels


def dequantize_4bit(
    codes: torch.Tensor, scales: list[torch.Tensor], layout: list[int], dtype: torch.dtype
) -> torch.Tensor:
    """W [N, K] in `dtype`."""
    shape = Layout(*layout)
    weight = torch.empty(shape.out_features, shape.in_features, dtype=dtype)
    if dtype != torch.float32:
        for first, end, rows in panels(codes, scales, layout):
            weight[first:end] = rows
        return weight
    decode(describe(codes, scales, layout), 0, weight.numel(), weight)
    return weight
