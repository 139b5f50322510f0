"""W [N, K] from codes: level[code] * absmax of its block, rounded once to `dtype`; bit-identical to bitsandbytes."""

from __future__ import annotations

import torch

from .by_storage import FLOAT_DTYPES, check_storage, is_dense
from .library import define


def _check(codes: torch.Tensor, scales: list[torch.Tensor], layout: list[int], dtype: torch.dtype) -> None:
    if is_dense(layout):
        raise ValueError("layout: expected a 4-bit weight, got a dense one")
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"dtype: expected one of {FLOAT_DTYPES}, got {dtype}")
    check_storage(codes, scales, layout)


def _fake(codes: torch.Tensor, scales: list[torch.Tensor], layout: list[int], dtype: torch.dtype) -> torch.Tensor:
    return codes.new_empty((layout[0], layout[1]), dtype=dtype)


define(
    "dequantize_4bit",
    "(Tensor codes, Tensor[] scales, int[] layout, ScalarType dtype) -> Tensor",
    check=_check,
    fake=_fake,
)
