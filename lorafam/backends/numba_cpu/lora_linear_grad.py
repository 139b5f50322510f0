"""dx = (G ∘ c) W + drop'(Q A); the mask is regenerated."""

from __future__ import annotations

import torch

from ...ops.by_storage import Storage, is_dense
from ...ops.library import accumulate_dtype, in_dtype
from . import dense_product, four_bit_product
from .dropout import dropped
from .product import product

Tensor = torch.Tensor


def lora_linear_grad(
    grad_y: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> Tensor:
    update = None
    if Q is not None and A is not None and seed is not None:
        dtype = accumulate_dtype(grad_y.dtype)
        update = dropped(product(in_dtype(Q, dtype), in_dtype(A, dtype)), seed, dropout_p)
        Q = A = None
    if is_dense(layout):
        return dense_product.backward(grad_y, data, c, Q, A, update)
    return four_bit_product.backward(grad_y, Storage(data, scales, layout), c, Q, A, update)
