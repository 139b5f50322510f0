"""AdaLoRA's importance, Ī and U updated in place in one pass over each tensor."""

from __future__ import annotations

import torch

from .compiled import kernel

Tensor = torch.Tensor


def adalora_importance(
    parameters: list[Tensor],
    gradients: list[Tensor],
    sensitivity: list[Tensor],
    uncertainty: list[Tensor],
    beta1: float,
    beta2: float,
) -> None:
    for parameter, gradient, smoothed, spread in zip(parameters, gradients, sensitivity, uncertainty, strict=True):
        wide = smoothed.dtype
        arrays = [tensor.to(wide).contiguous().view(-1).numpy() for tensor in (parameter, gradient)]
        _update(*arrays, smoothed.view(-1).numpy(), spread.view(-1).numpy(), beta1, beta2)


@kernel
def _update(parameter, gradient, smoothed, spread, beta1, beta2):
    kind = smoothed.dtype.type
    one = kind(1)
    first, second = kind(beta1), kind(beta2)
    rest1, rest2 = kind(1 - beta1), kind(1 - beta2)
    for index in range(smoothed.size):
        importance = abs(parameter[index] * gradient[index])
        smoothed[index] = first * smoothed[index] + rest1 * importance
        spread[index] = second * spread[index] + rest2 * (one * abs(importance - smoothed[index]))
