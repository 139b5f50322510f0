"""Block-wise 4-bit quantisation of a weight, and the second quantisation of its block scales (arXiv 2305.14314).

absmax_i = max |w| over block i of the flattened row-major weight
code = nearest level to w / absmax_i, the lower at a tie
offset = mean(absmax)
absmax_codes = nearest 8-bit dynamic level to (absmax - offset) / nested_absmax, after that quotient was rounded to
               the grid of `ABSMAX_STEPS` equal steps over [-1, 1], as bitsandbytes' CPU library does
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ..kernels.formats import BLOCK_SIZES, QUANT_TYPES, format_of
from .by_storage import FLOAT_DTYPES, NESTED_BLOCK_SIZE
from .library import define

ABSMAX_STEPS = 65535
# Divisors are at least this (a subnormal in fp32), so that a block of zeros gives zeros.
SMALLEST_ABSMAX = 1e-38


class LevelBounds(NamedTuple):
    """Where one level ends and the next begins: fp32 [15] ascending, and the codes (uint8 [16]) in order of their
    levels.
    """

    bounds: torch.Tensor
    order: torch.Tensor


@functools.cache
def level_bounds(quant_type: str) -> LevelBounds:
    """The fp32 midpoints between neighbouring levels, on the CPU. FP4's two zeros keep the order of their codes."""
    levels = format_of(quant_type).levels
    order = sorted(range(16), key=levels.__getitem__)
    ascending = torch.tensor([levels[code] for code in order], dtype=torch.float32)
    return LevelBounds((ascending[:-1] + ascending[1:]) / 2, torch.tensor(order, dtype=torch.uint8))


def _check(weight: torch.Tensor, block_size: int, quant_type: str) -> None:
    if weight.dtype not in FLOAT_DTYPES or weight.dtype == torch.float64:
        raise TypeError(f"weight: expected float32, bfloat16 or float16, got {weight.dtype}")
    if weight.ndim != 2:
        raise ValueError(f"weight: expected a matrix [N, K], got shape {list(weight.shape)}")
    if block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size: expected one of {BLOCK_SIZES}, got {block_size}")
    if quant_type not in QUANT_TYPES:
        raise ValueError(f"quant_type: expected one of {QUANT_TYPES}, got {quant_type!r}")


def _fake(weight: torch.Tensor, block_size: int, quant_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    count = weight.numel()
    codes = weight.new_empty(((count + 1) // 2, 1), dtype=torch.uint8)
    return codes, weight.new_empty(-(-count // block_size), dtype=torch.float32)


define(
    "quantize_4bit",
    "(Tensor weight, int block_size, str quant_type) -> (Tensor codes, Tensor absmax)",
    check=_check,
    fake=_fake,
)


def _check_absmax(absmax: torch.Tensor, nested_levels: torch.Tensor) -> None:
    if absmax.ndim != 1 or absmax.dtype != torch.float32:
        raise ValueError(f"absmax: expected float32 [blocks], got {absmax.dtype} {list(absmax.shape)}")
    if nested_levels.dtype != torch.float32 or nested_levels.shape != (256,):
        raise ValueError(
            f"nested_levels: expected 256 float32 levels, got {nested_levels.dtype} {list(nested_levels.shape)}"
        )


def _fake_absmax(absmax: torch.Tensor, nested_levels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    nested = -(-absmax.numel() // NESTED_BLOCK_SIZE)
    return torch.empty_like(absmax, dtype=torch.uint8), absmax.new_empty(nested), absmax.new_empty(())


define(
    "quantize_absmax",
    "(Tensor absmax, Tensor nested_levels) -> (Tensor absmax_codes, Tensor nested_absmax, Tensor offset)",
    check=_check_absmax,
    fake=_fake_absmax,
)
