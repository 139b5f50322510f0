"""AdaLoRA's importance in plain PyTorch (`torch._foreach` would add nothing: the tensors are small)."""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype

Tensor = torch.Tensor


def adalora_importance(
    parameters: list[Tensor],
    gradients: list[Tensor],
    sensitivity: list[Tensor],
    uncertainty: list[Tensor],
    beta1: float,
    beta2: float,
) -> None:
    """Updates Ī and U in place."""
    for parameter, gradient, smoothed, spread in zip(parameters, gradients, sensitivity, uncertainty, strict=True):
        importance = (parameter * gradient).abs().to(smoothed.dtype)
        smoothed.mul_(beta1).add_(importance, alpha=1 - beta1)
        spread.mul_(beta2).add_((importance - smoothed).abs(), alpha=1 - beta2)


def adalora_scores(sensitivity: list[Tensor], uncertainty: list[Tensor], rank_dims: list[int]) -> list[Tensor]:
    """The mean of Ī · U over everything but the rank."""
    return [
        (smoothed * spread).to(accumulate_dtype(smoothed.dtype)).mean(1 - dim)
        for smoothed, spread, dim in zip(sensitivity, uncertainty, rank_dims, strict=True)
    ]
