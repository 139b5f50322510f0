"""‖w_j + b̂_j A‖ per output feature, straight from panels of codes: n² = ‖w_j‖² + 2 b̂_j·(A w_j) + b̂_j (A Aᵀ) b̂_jᵀ.

Rows that nearly cancel are formed directly from the panel they are in.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...ops.by_storage import is_dense, weight_shape
from ...ops.row_norm import CANCELLATION, NORM_FLOOR, norm_dtype
from .panels import PANEL_BYTES, panels
from .product import product

Tensor = torch.Tensor


@torch.no_grad()
def row_norm(
    data: Tensor, scales: list[Tensor], layout: list[int], A: Tensor, B_hat: Tensor, weight_squared: Tensor | None
) -> Tensor:
    """n [N]."""
    dtype = norm_dtype(data, layout)
    A, B_hat = A.to(dtype), B_hat.to(dtype)
    gram = A @ A.T
    norms = torch.empty(weight_shape(data, layout)[0], dtype=dtype)
    for first, end, rows in _rows(data, scales, layout):
        update = B_hat[first:end]
        squared = _squares(rows) if weight_squared is None else weight_squared[first:end].to(dtype)
        cross = product(A, rows.T).mul_(2).add_(gram @ update.T)
        total = squared + (cross * update.T).sum(0)
        near = total <= CANCELLATION * squared
        if near.any():
            total[near] = torch.addmm(rows[near], update[near], A).square().sum(1)
        norms[first:end] = total.sqrt().clamp_(min=NORM_FLOOR)
    return norms


@torch.no_grad()
def squared_row_norm(data: Tensor, scales: list[Tensor], layout: list[int]) -> Tensor:
    """‖w_j‖² [N]."""
    norms = torch.empty(weight_shape(data, layout)[0], dtype=norm_dtype(data, layout))
    for first, end, rows in _rows(data, scales, layout):
        norms[first:end] = _squares(rows)
    return norms


def _squares(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1).square_()


def _rows(data: Tensor, scales: list[Tensor], layout: list[int]) -> Iterator[tuple[int, int, Tensor]]:
    """Panels of W in the norm's dtype, whatever its storage."""
    if not is_dense(layout):
        yield from panels(data, scales, layout)
        return
    dtype = norm_dtype(data, layout)
    height = data.shape[0] if data.dtype == dtype else max(1, PANEL_BYTES // (4 * max(1, data.shape[1])))
    for first in range(0, data.shape[0], height):
        rows = data[first : first + height]
        yield first, first + rows.shape[0], rows.to(dtype)
