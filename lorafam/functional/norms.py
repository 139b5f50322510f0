"""DoRA's norm and AdaLoRA's penalty."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..autograd import OrthogonalityFunction, RowNormFunction, applied, scaled
from ..backends.undispatched import call
from ..compat.torch import is_transformed
from ..ops.by_storage import Storage, dense_storage
from ..weights import NF4Weight
from .arguments import Weight, recorded

Tensor = torch.Tensor


def row_norm(
    weight: Weight,
    A: Tensor,
    B: Tensor,
    scaling: float | Tensor,
    *,
    weight_squared: Tensor | None = None,
    differentiable: bool = False,
) -> Tensor:
    """n_j = ‖w_j + s b_j A‖₂ per output feature (the paper's column norm of Wᵀ), fp32 [N]; without gradient, unless
    `differentiable`: two more products with W of r tokens in the backward then.

    `weight_squared` [N] is ‖w_j‖² when the caller keeps it (an NF4Weight keeps its own).
    """
    storage = weight.storage() if isinstance(weight, NF4Weight) else dense_storage(weight)
    return norm_of(weight, storage, A, B, scaling, weight_squared, differentiable)


def orthogonality_penalty(As: Sequence[Tensor], Bs: Sequence[Tensor]) -> Tensor:
    """R [] = mean over all A [r, K] and B [N, r] of ‖A Aᵀ − I‖_F and ‖Bᵀ B − I‖_F, in fp32 (AdaLoRA, arXiv 2303.10512,
    equation 4, averaged and not squared as in PEFT).

    Raises ValueError when there are none. On a GPU one launch serves the factors of a whole model.
    """
    if not As and not Bs:
        raise ValueError("As, Bs: expected the factors of at least one layer, got none")
    return applied(OrthogonalityFunction, (0,) * len(As) + (1,) * len(Bs), *As, *Bs).mean()


def norm_of(
    weight: Weight,
    storage: Storage,
    A: Tensor,
    B: Tensor,
    scaling: float | Tensor,
    weight_squared: Tensor | None = None,
    differentiable: bool = False,
) -> Tensor:
    """`row_norm` of a weight that is op arguments already."""
    transformed = is_transformed()
    if weight_squared is None and isinstance(weight, NF4Weight) and not transformed:
        weight_squared = weight.squared_row_norm()
    if transformed or (differentiable and recorded(A, B, scaling)):
        inputs = (A, B, scaling, weight_squared, storage.data, tuple(storage.layout), *storage.scales)
        norm = applied(RowNormFunction, *inputs)
        return norm if differentiable else norm.detach()
    with torch.no_grad():
        return call("row_norm", *storage, A, scaled(B, scaling), weight_squared)
