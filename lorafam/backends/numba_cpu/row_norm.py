"""‖w_j + b̂_j A‖ per output feature, straight from codes: n² = ‖w_j‖² + 2 b̂_j·(A w_j) + b̂_j (A Aᵀ) b̂_jᵀ.

A Wᵀ is a product with r tokens. Rows that nearly cancel are formed directly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ...ops.by_storage import Storage
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
    weight, dtype = Storage(data, scales, layout), norm_dtype(data, layout)
    A, B_hat = A.to(dtype), B_hat.to(dtype)
    if A.shape[0] > A.shape[1]:
        # A Aᵀ [r, r] is more than W + B̂A then, and takes longer
        every = torch.arange(B_hat.shape[0])
        return _norms_of_sums(weight, A, B_hat, every).clamp_(min=NORM_FLOOR)
    squared = squared_row_norm(*weight) if weight_squared is None else weight_squared.to(dtype)
    gram = A @ A.T
    # 2 A w_j + (A Aᵀ) b̂_j, a column a row of W
    cross = _projected(weight, A).addmm_(gram, B_hat.T, beta=2)
    total = (cross * B_hat.T).sum(0).add_(squared)
    least = torch.addmv(squared, B_hat.square(), gram.diag(), beta=CANCELLATION, alpha=CANCELLATION)
    near = total <= least
    norms = total.sqrt_()
    if near.any():
        rows = near.nonzero().flatten()
        norms[rows] = _norms_of_sums(weight, A, B_hat, rows)
    return norms.clamp_(min=NORM_FLOOR)


def _norms_of_sums(weight: Storage, A: Tensor, B_hat: Tensor, rows: Tensor) -> Tensor:
    """‖w_j + b̂_j A‖ of the sums themselves, of the rows of these indices, ascending; a panel of them at a time."""
    height = max(1, PANEL_BYTES // (4 * max(1, A.shape[1])))
    norms = []
    for some in rows.split(height):
        sums = (B_hat[some] @ A).add_(_some_rows(weight, some))
        norms.append(torch.linalg.vector_norm(sums, dim=1))
    return torch.cat(norms)


def _projected(weight: Storage, A: Tensor) -> Tensor:
    """A Wᵀ [r, N] in A's dtype."""
    if not weight.is_dense:
        return four_bit_product.forward(A, weight, None, None, None, None)
    data = weight.data
    if dense_few_tokens.suits(data, A.dtype, A.shape[0]):
        return dense_product.forward(A, data, None, None, None, None)
    result = A.new_empty(A.shape[0], data.shape[0])
    for first, end, rows in _rows(weight):
        result[:, first:end] = product(A, rows.T)
    return result


def _some_rows(weight: Storage, rows: Tensor) -> Tensor:
    """W's rows of these indices, ascending, in the norm's dtype."""
    if weight.is_dense:
        return weight.data[rows].to(norm_dtype(weight.data, weight.layout))
    columns = weight.shape[1]
    out = torch.empty(len(rows), columns)
    codes, wanted, first = describe(weight), rows.tolist(), 0
    for index, row in enumerate(wanted, 1):
        # rows that follow one another at once
        if index == len(wanted) or wanted[index] != row + 1:
            decode(codes, wanted[first] * columns, (row + 1) * columns, out[first:index])
            first = index
    return out


def squared_row_norm(data: Tensor, scales: list[Tensor], layout: list[int]) -> Tensor:
    """‖w_j‖² [N]."""
    weight = Storage(data, scales, layout)
    norms = torch.empty(weight.shape[0], dtype=norm_dtype(data, layout))
    for first, end, rows in _rows(weight):
        norms[first:end] = _squares(rows)
    return norms


def _squares(rows: Tensor) -> Tensor:
    # a root that was rounded to fp32 would lose a digit
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).square_()


def _rows(weight: Storage) -> Iterator[tuple[int, int, Tensor]]:
    """Panels of W in the norm's dtype, whatever its storage."""
    if not weight.is_dense:
        yield from panels(weight)
        return
    data, dtype = weight.data, norm_dtype(weight.data, weight.layout)
    height = data.shape[0] if data.dtype == dtype else max(1, PANEL_BYTES // (4 * max(1, data.shape[1])))
    for first in range(0, data.shape[0], height):
        rows = data[first : first + height]
        yield first, first + rows.shape[0], rows.to(dtype)
