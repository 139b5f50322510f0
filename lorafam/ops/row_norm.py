"""n_j = ‖w_j + b̂_j A‖₂ per output feature: W [N, K] dense or 4-bit, A [r, K], B̂ [N, r] → n [N] in fp32 (fp64 if W is).

    n_j² = ‖w_j‖² + 2 b̂_j·(A w_j) + b̂_j (A Aᵀ) b̂_jᵀ, clamped at 0

Rows where the sum is at most half of ‖w_j‖² + Σ_r b̂_jr² ‖a_r‖² are formed directly, since the identity loses digits to
cancellation; n_j is at least `NORM_FLOOR`, so that a zero row gives neither inf nor NaN. ‖w_j‖² is `squared_row_norm`'s
result, kept with the weight, or None to form it here.
"""

from __future__ import annotations

import torch

from ..reference.row_norm import CANCELLATION, NORM_FLOOR
from .by_storage import check_storage, is_dense, weight_shape
from .checks import check_factor, check_vector
from .library import accumulate_dtype, define

__all__ = ["CANCELLATION", "NORM_FLOOR", "norm_dtype"]


def norm_dtype(data: torch.Tensor, layout: list[int]) -> torch.dtype:
    """fp32, or fp64 for a dense fp64 weight."""
    return accumulate_dtype(data.dtype) if is_dense(layout) else torch.float32


def _check(
    data: torch.Tensor,
    scales: list[torch.Tensor],
    layout: list[int],
    A: torch.Tensor,
    B_hat: torch.Tensor,
    weight_squared: torch.Tensor | None,
) -> None:
    check_storage(data, scales, layout)
    out_features, in_features = weight_shape(data, layout)
    check_factor("A", A, (None, in_features), data.device)
    check_factor("B", B_hat, (out_features, A.shape[0]), data.device)
    check_vector("weight_squared", weight_squared, out_features, data.device)


def _fake(
    data: torch.Tensor,
    scales: list[torch.Tensor],
    layout: list[int],
    A: torch.Tensor,
    B_hat: torch.Tensor,
    weight_squared: torch.Tensor | None,
) -> torch.Tensor:
    return data.new_empty(weight_shape(data, layout)[0], dtype=norm_dtype(data, layout))


define(
    "row_norm",
    "(Tensor data, Tensor[] scales, int[] layout, Tensor A, Tensor B_hat, Tensor? weight_squared) -> Tensor",
    check=_check,
    fake=_fake,
)


def _fake_squared(data: torch.Tensor, scales: list[torch.Tensor], layout: list[int]) -> torch.Tensor:
    return data.new_empty(weight_shape(data, layout)[0], dtype=norm_dtype(data, layout))


define(
    "squared_row_norm",
    "(Tensor data, Tensor[] scales, int[] layout) -> Tensor",
    check=check_storage,
    fake=_fake_squared,
)
