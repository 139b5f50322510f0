"""The one check that every reference function makes of its arguments."""

from __future__ import annotations

from types import EllipsisType

from torch import Tensor

Size = int | None | EllipsisType


def expect(name: str, tensor: Tensor | None, shape: tuple[Size, ...], like: Tensor) -> None:
    """Raises unless `tensor`, where given, has `shape` and the dtype and device of `like`.

    In `shape` a None leaves that size free, and a leading `...` any number of sizes.
    Raises ValueError for a wrong shape or device, TypeError for a wrong dtype; the message names the argument.
    """
    if tensor is None:
        return
    if shape[0] is ...:
        tail, leading_fits = shape[1:], tensor.ndim >= len(shape) - 1
    else:
        tail, leading_fits = shape, tensor.ndim == len(shape)
    sizes = tensor.shape[tensor.ndim - len(tail) :]
    if not leading_fits or any(want not in (None, have) for want, have in zip(tail, sizes, strict=True)):
        wanted = ", ".join("..." if size is ... else "any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(tensor.shape)}")
    if tensor.dtype != like.dtype or not tensor.dtype.is_floating_point:
        wanted_dtype = like.dtype if like.dtype.is_floating_point else "a floating-point dtype"
        raise TypeError(f"{name}: expected {wanted_dtype}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name}: expected device {like.device}, got {tensor.device}")


def expect_tokens(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None = None) -> None:
    """x [..., K], mask of x's shape, bias [N] for a weight [N, K]."""
    expect("weight", weight, (None, None), weight)
    expect("x", x, (..., weight.shape[1]), weight)
    expect("mask", mask, tuple(x.shape), weight)
    expect("bias", bias, (weight.shape[0],), weight)


def expect_low_rank(x: Tensor, weight: Tensor, A: Tensor, B: Tensor, bias: Tensor | None, mask: Tensor | None) -> None:
    """The tokens and the factors."""
    expect_tokens(x, weight, bias, mask)
    expect_factors(weight, A, B)


def expect_factors(weight: Tensor, A: Tensor, B: Tensor) -> None:
    """A [r, K] and B [N, r] for a weight [N, K]."""
    expect("weight", weight, (None, None), weight)
    expect("A", A, (None, weight.shape[1]), weight)
    expect("B", B, (weight.shape[0], A.shape[0]), weight)


def tokens(tensor: Tensor) -> Tensor:
    """[..., F] as the matrix [M, F] of its M tokens."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])
