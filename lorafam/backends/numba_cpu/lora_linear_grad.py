"""dx = (G ∘ c) W + drop'(Q A): panels of W's rows, each adding its share to dx; the mask is regenerated."""

from __future__ import annotations

import torch

from ...ops.by_storage import is_dense
from ...ops.library import accumulate_dtype
from .dropout import dropped
from .panels import panels
from .product import add_product, product

Tensor = torch.Tensor


@torch.no_grad()
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
    if is_dense(layout):
        scaled = grad_y if c is None else (grad_y * c).to(grad_y.dtype)
        dx = product(scaled, data.to(grad_y.dtype))
        if Q is None or A is None:
            return dx
        return dx.to(dtype).add_(_low_rank(Q, A, seed, dropout_p, dtype)).to(grad_y.dtype)
    wide = grad_y.to(dtype)
    dx = wide.new_zeros(wide.shape[0], layout[1])
    if Q is not None and A is not None:
        dx = _low_rank(Q, A, seed, dropout_p, dtype)
    for first, end, rows in panels(data, scales, layout, dtype):
        part = wide[:, first:end]
        # the panel is small and in cache: scaling its rows or G's columns costs the same, G's needs no second buffer
        dx = add_product(dx, part if c is None else part * c[first:end].to(dtype), rows)
    return dx.to(grad_y.dtype)


def _low_rank(Q: Tensor, A: Tensor, seed: Tensor | None, dropout_p: float, dtype: torch.dtype) -> Tensor:
    """drop'(Q A)."""
    update = product(Q.to(dtype), A.to(dtype))
    return update if seed is None else dropped(update, seed, dropout_p)
