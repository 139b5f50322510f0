"""P = drop(x) Aᵀ [M, r] in fp32 (fp64 for fp64 x)."""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype, in_dtype
from .dropout import dropped
from .four_bit_product import as_read, single
from .processor import processor
from .project import project

Tensor = torch.Tensor


def lora_project(x: Tensor, A: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor:
    if seed is not None:
        x = dropped(in_dtype(x, accumulate_dtype(x.dtype)), seed, dropout_p)
    if x.dtype == torch.float64:
        return torch.mm(x, in_dtype(A, torch.float64).T)
    P = x.new_empty(x.shape[0], A.shape[0], dtype=torch.float32)
    project(as_read(x), single(A), P, processor())
    return P
