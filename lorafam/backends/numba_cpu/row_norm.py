"""‖w_j + b̂_j A‖ per output feature, straight from codes: n² = ‖w_j‖² + 2 b̂_j·(A w_j) + b̂_j (A Aᵀ) b̂_jᵀ.

A Wᵀ is a product with r tokens. Rows that nearly cancel are formed directly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...ops.by_storage import is_dense, weight_shape
from ...ops.row_norm import CANCELLATION, NORM_FLOOR, norm_dtype
from . import dense_few_tokens, dense_product, four_bit_product
from .four_bit import describe
from .panels import PANEL_BYTES, decode, panels
from .product import product

Tensor = torch.Tensor


def row_norm(
    data: Tensor, scales: list[Tensor], layout: list[int], A: Tensor, B_hat: Tensor, weight_squared: Tensor | None
) -> Tensor:
    """n [N]."""
    dtype = norm_dtype(data, layout)
    A, B_hat = A.to(dtype), B_hat.to(dtype)
    squared = squared_row_norm(data, scales, layout) if weight_squared is None else weight_squared.to(dtype)
    # 2 A w_j + (A Aᵀ) b̂_j, a column a row of W
    cross = _projected(data, scales, layout, A).mul_(2).addmm_(A @ A.T, B_hat.T)
    total = (cross * B_hat.T).sum(0).add_(squared)
    near = total <= CANCELLATION * squared
    if near.any():
        for row in near.nonzero().flatten().tolist():
            total[row] = torch.addmv(_row(data, scales, layout, row), A.T, B_hat[row]).square().sum()
    return total.sqrt_().clamp_(min=NORM_FLOOR)


def _projected(data: Tensor, scales: list[Tensor], layout: list[int], A: Tensor) -> Tensor:
    """A Wᵀ [r, N] in A's dtype."""
    if not is_dense(layout):
        return four_bit_product.forward(A, data, scales, layout, None, None, None, None)
    if dense_few_tokens.suits(data, A.dtype, A.shape[0]):
        return dense_product.forward(A, data, None, None, None, None)
    result = A.new_empty(A.shape[0], data.shape[0])
    for first, end, rows in _rows(data, scales, layout):
        result[:, first:end] = product(A, rows.T)
    return result


def _row(data: Tensor, scales: list[Tensor], layout: list[int], row: int) -> Tensor:
    """w_j [K] in the norm's dtype."""
    if is_dense(layout):
        return data[row].to(norm_dtype(data, layout))
    columns = layout[1]
    out = torch.empty(columns, dtype=torch.float32)
    decode(describe(data, scales, layout), row * columns, (row + 1) * columns, out)
    return out


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
