"""What every function asks of its arguments, and how x and Y are brought into shape."""

from __future__ import annotations

import torch

from ..compat.torch import is_transformed
from ..ops.by_storage import Storage, dense_storage
from ..ops.checks import check_device, check_dropout, check_factor
from ..weights import NF4Weight

Tensor = torch.Tensor
Weight = Tensor | NF4Weight


def recorded(*values: Tensor | float | None) -> bool:
    """Whether autograd, or a transform, needs to know of a call: an autograd Function costs as much time as a small
    product.
    """
    if is_transformed():
        return True
    return torch.is_grad_enabled() and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def storage_of(x: Tensor, weight: Weight) -> Storage:
    """The weight as op arguments; under autocast a dense one in autocast's dtype, as F.linear would take it."""
    if isinstance(weight, NF4Weight):
        return weight.storage()
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor or an NF4Weight, got {type(weight).__name__}")
    if weight.requires_grad:
        raise ValueError("weight: expected a frozen weight, got one that requires gradients (it would get none)")
    if torch.is_autocast_enabled(weight.device.type):
        weight = _lowered(weight)
    return dense_storage(weight)


def _lowered(tensor: Tensor) -> Tensor:
    """In autocast's dtype; fp64 stays, as everywhere under autocast."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.get_autocast_dtype(tensor.device.type))


def tokens_of(x: Tensor, storage: Storage) -> Tensor:
    """x as [tokens, K], in autocast's dtype where autocast is on."""
    in_features = storage.shape[1]
    if x.ndim == 0 or x.shape[-1] != in_features:
        raise ValueError(f"x: expected [..., {in_features}], got {list(x.shape)}")
    check_device("x", x, storage.data.device)
    if torch.is_autocast_enabled(x.device.type):
        x = _lowered(x)
    # a matrix needs no view, forward or backward
    return x if x.ndim == 2 else x.reshape(-1, in_features)


def restored(y: Tensor, x: Tensor) -> Tensor:
    """Y [tokens, N] with x's leading shape: itself or a view, so that autograd sees an in-place change of it."""
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[1])


def check_factors(A: Tensor, B: Tensor, in_features: int, out_features: int, device: torch.device) -> None:
    check_factor("A", A, (None, in_features), device)
    check_factor("B", B, (out_features, A.shape[0]), device)


def mask_seed(x: Tensor, dropout_p: float, training: bool, seed: Tensor | int | None) -> Tensor | None:
    """The mask's seed as an int64 tensor on x's device; None where nothing is dropped."""
    check_dropout(None, dropout_p, x.device)
    if not training or dropout_p == 0.0:
        return None
    if seed is None:
        # drawn on the device: no synchronisation, and activation checkpointing draws the same one again
        return torch.randint(2**63 - 1, (), dtype=torch.int64, device=x.device)
    if not isinstance(seed, Tensor):
        return torch.tensor(seed, dtype=torch.int64, device=x.device)
    check_dropout(seed, dropout_p, x.device)
    return seed
