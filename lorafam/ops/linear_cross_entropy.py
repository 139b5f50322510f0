"""An output head's loss for each token and its gradient in the tokens: x [M, K], dense W [V, K], targets [M] →

    l = x Wᵀ + bias          loss_m = log Σ_v e^(l_mv) − l_m,target          dx_m = Σ_v softmax(l_m)_v w_v − w_target

losses [M] and, where it `differentiates`, dx [M, K] = ∂loss_m/∂x_m (else [0, K]), in fp32 (fp64 if x is).
"""

from __future__ import annotations

import torch

from .checks import check_device, check_vector
from .library import accumulate_dtype, define


def _check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor, differentiates: bool
) -> None:
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x: expected a floating-point matrix, got {x.dtype} {list(x.shape)}")
    if weight.ndim != 2 or not weight.is_floating_point() or weight.shape[1] != x.shape[1]:
        raise ValueError(
            f"weight: expected a floating-point matrix of {x.shape[1]} columns, got {weight.dtype} {list(weight.shape)}"
        )
    check_device("weight", weight, x.device)
    check_vector("bias", bias, weight.shape[0], x.device)
    if target.dtype != torch.int64 or target.shape != x.shape[:1]:
        raise ValueError(f"target: expected int64 [{x.shape[0]}], got {target.dtype} {list(target.shape)}")
    check_device("target", target, x.device)
    # on a GPU looking would wait for it; torch's gather asserts there
    if target.is_cpu and target.numel() and not 0 <= target.min() <= target.max() < weight.shape[0]:
        raise IndexError(f"target: expected 0 to {weight.shape[0] - 1}, got {int(target.min())} to {int(target.max())}")


def _fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, target: torch.Tensor, differentiates: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = accumulate_dtype(x.dtype)
    shape = x.shape if differentiates else (0, x.shape[1])
    return x.new_empty(x.shape[0], dtype=dtype), x.new_empty(shape, dtype=dtype)


define(
    "linear_cross_entropy",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor target, bool differentiates) -> (Tensor, Tensor)",
    check=_check,
    fake=_fake,
)
