"""Checks that several ops share. Each raises one error that names the argument, what was expected and what came."""

from __future__ import annotations

import math

import torch

from .by_storage import FLOAT_DTYPES, is_dense
from .library import accumulate_dtype


def check_tokens(name: str, x: torch.Tensor, features: int, device: torch.device) -> None:
    """`x` must be a floating-point matrix [tokens, features] on `device`."""
    if x.ndim != 2 or x.shape[1] != features:
        raise ValueError(f"{name}: expected [tokens, {features}], got {list(x.shape)}")
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected a floating-point dtype, got {x.dtype}")
    check_device(name, x, device)


def check_device(name: str, tensor: torch.Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, got {tensor.device}")


def check_dense_dtype(name: str, x: torch.Tensor, data: torch.Tensor, layout: list[int]) -> None:
    """A dense weight is multiplied in its own dtype, or widened to that of its sums."""
    if is_dense(layout) and x.dtype not in (data.dtype, accumulate_dtype(data.dtype)):
        raise TypeError(f"{name}: expected {data.dtype}, the dtype of the dense weight, got {x.dtype}")


def check_factor(name: str, factor: torch.Tensor, shape: tuple[int | None, int | None], device: torch.device) -> None:
    """A low-rank factor must be a floating-point matrix; `None` in `shape` leaves that size free."""
    have, (rows, columns) = factor.shape, shape
    if len(have) != 2 or (rows is not None and have[0] != rows) or (columns is not None and have[1] != columns):
        wanted = ", ".join("r" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected [{wanted}], got {list(have)}")
    if factor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected a floating-point dtype, got {factor.dtype}")
    check_device(name, factor, device)


def check_vector(name: str, vector: torch.Tensor | None, size: int, device: torch.device) -> None:
    """An optional vector per output feature."""
    if vector is None:
        return
    if vector.ndim != 1 or vector.shape[0] != size:
        raise ValueError(f"{name}: expected [{size}], got {list(vector.shape)}")
    if vector.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected a floating-point dtype, got {vector.dtype}")
    check_device(name, vector, device)


def check_dropout(seed: torch.Tensor | None, dropout_p: float, device: torch.device) -> None:
    """`seed` is None (no dropout) or one int64 on `device`; `dropout_p` is a probability below 1."""
    if not (math.isfinite(dropout_p) and 0.0 <= dropout_p < 1.0):
        raise ValueError(f"dropout_p: expected a probability in [0, 1), got {dropout_p}")
    if seed is None:
        return
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise ValueError(f"seed: expected one int64, got {seed.numel()} of {seed.dtype}")
    check_device("seed", seed, device)
