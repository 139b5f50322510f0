"""Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i: one launch a weight, repeated where a call like it was made before."""

from __future__ import annotations

import torch

from ...ops.lora_linear_group import members
from .lora_linear import again, lora_linear

Tensor = torch.Tensor


def lora_linear_group(
    x: Tensor,
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> list[Tensor]:
    results = []
    for member in members(data, scales, layout, P, B_hat, bias):
        y = again(x, *member)
        results.append(lora_linear(x, *member) if y is None else y)
    return results
