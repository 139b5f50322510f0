"""‖w_j + b̂_j A‖ in plain PyTorch, by the dense sum: nothing cancels, one row of W + B̂A at a time is never needed
here.
"""

from __future__ import annotations

import torch

from ...ops.by_storage import Storage
from ...ops.row_norm import NORM_FLOOR, norm_dtype
from .products import dense_weight

Tensor = torch.Tensor


def row_norm(
    data: Tensor, scales: list[Tensor], layout: list[int], A: Tensor, B_hat: Tensor, weight_squared: Tensor | None
) -> Tensor:
    """n [N]; `weight_squared` isn't needed by the dense sum."""
    dtype = norm_dtype(data, layout)
    adapted = torch.addmm(dense_weight(Storage(data, scales, layout), dtype), B_hat.to(dtype), A.to(dtype))
    return torch.linalg.vector_norm(adapted, dim=1).clamp_min(NORM_FLOOR)


def squared_row_norm(data: Tensor, scales: list[Tensor], layout: list[int]) -> Tensor:
    """‖w_j‖² [N]."""
    return dense_weight(Storage(data, scales, layout), norm_dtype(data, layout)).square().sum(1)
