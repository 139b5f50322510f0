"""P = drop(x) Aᵀ [M, r] in fp32 (fp64 for fp64 x)."""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype, in_dtype
from .dropout import dropped
from .product import product

Tensor = torch.Tensor


def lora_project(x: Tensor, A: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor:
    dtype = accumulate_dtype(x.dtype)
    wide = in_dtype(x, dtype)
    if seed is not None:
        wide = dropped(wide, seed, dropout_p)
    return product(wide, in_dtype(A, dtype).T)
