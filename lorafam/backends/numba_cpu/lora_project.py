"""P = drop(x) Aᵀ [M, r] in fp32 (fp64 for fp64 x)."""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype, in_dtype
from .dropout import dropped
from .processor import processor
from .project import project

Tensor = torch.Tensor


def lora_project(x: Tensor, A: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor:
    if seed is not None:
        x = dropped(in_dtype(x, accumulate_dtype(x.dtype)), seed, dropout_p)
    if x.dtype == torch.float64:
        return torch.mm(x, in_dtype(A, torch.float64).T)
    narrow = x if x.dtype in (torch.float32, torch.bfloat16) else x.float()
    P = x.new_empty(x.shape[0], A.shape[0], dtype=torch.float32)
    project(narrow.contiguous(), in_dtype(A, torch.float32).contiguous(), P, processor())
    return P
