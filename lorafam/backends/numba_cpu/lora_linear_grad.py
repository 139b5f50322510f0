"""dx = (G ∘ c) W + drop'(Q A): one pass over a 4-bit W, torch's products for a dense one; the mask is regenerated."""

from __future__ import annotations

import torch

from ...ops.by_storage import is_dense
from ...ops.library import accumulate_dtype
from . import four_bit_product
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
    dtype = accumulate_dtype(grad_y.dtype)
    if not is_dense(layout):
        if Q is None or A is None or seed is None:
            return four_bit_product.backward(grad_y, data, scales, layout, c, Q, A, None)
        update = _low_rank(Q, A, seed, dropout_p, dtype)
        return four_bit_product.backward(grad_y, data, scales, layout, c, None, None, update)
    scaled = grad_y if c is None else (grad_y * c).to(grad_y.dtype)
    dx = product(scaled, data.to(grad_y.dtype))
    if Q is None or A is None:
        return dx
    return dx.to(dtype).add_(_low_rank(Q, A, seed, dropout_p, dtype)).to(grad_y.dtype)


def _low_rank(Q: Tensor, A: Tensor, seed: Tensor | None, dropout_p: float, dtype: torch.dtype) -> Tensor:
    """drop'(Q A)."""
    update = product(Q.to(dtype), A.to(dtype))
    return update if seed is None else dropped(update, seed, dropout_p)
