"""P = drop(x) Aᵀ: x [M, K], A [r, K] → P [M, r] in fp32 (fp64 for fp64 x)."""

from __future__ import annotations

import torch

from .checks import check_dropout, check_factor, check_tokens
from .library import accumulate_dtype, define


def _check(x: torch.Tensor, A: torch.Tensor, seed: torch.Tensor | None, dropout_p: float) -> None:
    check_factor("A", A, (None, None), A.device)
    check_tokens("x", x, A.shape[1], A.device)
    check_dropout(seed, dropout_p, x.device)


def _fake(x: torch.Tensor, A: torch.Tensor, seed: torch.Tensor | None, dropout_p: float) -> torch.Tensor:
    return x.new_empty((x.shape[0], A.shape[0]), dtype=accumulate_dtype(x.dtype))


define("lora_project", "(Tensor x, Tensor A, Tensor? seed, float dropout_p) -> Tensor", check=_check, fake=_fake)
