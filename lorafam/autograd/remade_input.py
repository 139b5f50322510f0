"""Inputs that a Function forms again in its backward instead of saving them: where they were made of tensors that are
saved anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

_ATTRIBUTE = "_lorafam_made"


class _Made(NamedTuple):
    """How a tensor was made, of which tensors and of what else; and its version then, and theirs."""

    function: Callable[..., Tensor]
    tensors: tuple[Tensor, Tensor]
    rest: tuple[Any, ...]
    versions: tuple[int, ...]


def remember(made: Tensor, function: Callable[..., Tensor], one: Tensor, other: Tensor, *rest: Any) -> None:
    """Notes that `made` is `function(one, other, *rest)`, of operations that autograd can follow."""
    setattr(made, _ATTRIBUTE, _Made(function, (one, other), rest, _versions(made, one, other)))


class Input(NamedTuple):
    """What a Function keeps of an input beside saved tensors: how it is made, None where it is saved itself."""

    function: Callable[..., Tensor] | None
    rest: tuple[Any, ...] = ()
    shape: tuple[int, ...] = ()

    def of(self, one: Tensor, other: Tensor | None) -> Tensor:
        """The input, from the tensors of `kept_of`."""
        if self.function is None:
            return one
        return self.function(one, other, *self.rest).reshape(self.shape)


def kept_of(x: Tensor) -> tuple[Input, tuple[Tensor | None, Tensor | None]]:
    """How to have `x` again, and the two tensors to save for that."""
    made = None if torch.compiler.is_compiling() else _made(x)
    if made is None:
        return Input(None), (x, None)
    return Input(made.function, made.rest, tuple(x.shape)), made.tensors


def _made(x: Tensor) -> _Made | None:
    """Of x or of what it is another shape of; None where it isn't known, or one of the tensors has changed since."""
    whole = x if x._base is None else x._base
    made = getattr(whole, _ATTRIBUTE, None)
    if made is None:
        return None
    if whole.numel() != x.numel() or not (whole.is_contiguous() and x.is_contiguous()):
        return None
    return made if _versions(whole, *made.tensors) == made.versions else None


def _versions(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(tensor._version for tensor in tensors)
