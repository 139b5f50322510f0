"""Ops called without torch's dispatcher where it would only pass the call on: on CPU tensors it takes 6 µs a call, as
long as a small product; and those of a whole direction together, where the CPU backend has them in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..compat.torch import somebody_listens
from ..ops.library import OPS
from .selection import kernels_of_a_direction, preparing, run

_VALUES = (type(None), float, int, bool)
_TENSORS = (torch.Tensor, nn.Parameter)


def call(name: str, *args: Any) -> Any:
    """`torch.ops.lorafam.<name>(*args)`: same checks, backend and result."""
    if torch.compiler.is_compiling() or somebody_listens() or not _are_plain(args):
        return getattr(torch.ops.lorafam, name)(*args)
    return run(OPS[name], "cpu", *args)


def as_one(name: str, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)`, a few ops over tensors on the first one's device; prepared together where nobody listens."""
    prepared = None if torch.compiler.is_compiling() else preparing("cuda" if args[0].is_cuda else "cpu")
    if prepared is None or somebody_listens():
        return function(*args)
    return prepared(name, function, *args)


def together(*args: Any) -> ModuleType | None:
    """`backends.numba_cpu.together` where all ops over these arguments would go to that backend and nobody listens."""
    if torch.compiler.is_compiling() or somebody_listens() or not _are_plain(args):
        return None
    return kernels_of_a_direction()


def _are_plain(args: Sequence[Any]) -> bool:
    """Whether all are values or CPU tensors of torch's own kinds whose bytes are their values, in lists and tuples."""
    several = [args]
    for own in several:
        for arg in own:
            kind = type(arg)
            if kind in _TENSORS:
                # torch's dispatcher gives a lazily negated view its sign
                if not arg.is_cpu or arg.is_neg():
                    return False
            elif kind not in _VALUES:
                if not issubclass(kind, list | tuple):
                    return False
                several.append(arg)
    return True
