"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias. Sums are formed in fp32 (fp64 for fp64 x)."""

from __future__ import annotations

import torch

from ...ops.by_storage import Storage, is_dense
from . import dense_product, four_bit_product

Tensor = torch.Tensor


def lora_linear(
    x: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    if is_dense(layout):
        return dense_product.forward(x, data, P, B_hat, c, bias)
    return four_bit_product.forward(x, Storage(data, scales, layout), P, B_hat, c, bias)
