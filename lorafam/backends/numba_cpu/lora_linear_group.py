"""Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i: few tokens and 4-bit weights in one call of the kernel, which reads x once."""

from __future__ import annotations

import torch

from ...ops.lora_linear_group import members
from . import four_bit_product
from .lora_linear import lora_linear

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
    each = members(data, scales, layout, P, B_hat, bias)
    if layout:
        together = four_bit_product.forward_group(x, each)
        if together is not None:
            return together
    return [lora_linear(x, *member.arguments) for member in each]
