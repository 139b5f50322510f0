"""drop(x): x [M, K] with elements dropped with probability p and the kept ones divided by 1 - p.

The mask is Philox4x32-10 (Salmon et al., SC 2011): key = seed, counter = (row, column // 4), word column % 4, kept
where word >= floor(p 2^32). It depends on nothing else, so the same op applied to a gradient is its backward.
"""

from __future__ import annotations

import torch

from .checks import check_dropout, check_tokens
from .library import define


def _check(x: torch.Tensor, seed: torch.Tensor, dropout_p: float) -> None:
    check_tokens("x", x, x.shape[-1] if x.ndim else 0, x.device)
    check_dropout(seed, dropout_p, x.device)


def _fake(x: torch.Tensor, seed: torch.Tensor, dropout_p: float) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


define("dropout", "(Tensor x, Tensor seed, float dropout_p) -> Tensor", check=_check, fake=_fake)
