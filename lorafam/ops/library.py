"""How an op is declared: schema, checks and fake tensor in one place; the implementations are in `backends`.

An op takes plain tensors. A base weight is flattened to three arguments, `data, scales, layout` (see `by_storage`),
so that dense and 4-bit weights share every schema.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

LIBRARY = torch.library.Library("lorafam", "DEF")


class Op(NamedTuple):
    """The contract of one op: its name, and the checks that run before any backend."""

    name: str
    check: Callable[..., None]


OPS: dict[str, Op] = {}


def define(name: str, schema: str, *, check: Callable[..., None], fake: Callable[..., Any]) -> None:
    """Declares `torch.ops.lorafam.<name>` with its checks and its fake (shape-only) implementation."""
    LIBRARY.define(f"{name}{schema}")
    torch.library.register_fake(f"lorafam::{name}", fake, lib=LIBRARY)
    OPS[name] = Op(name, check)


def in_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`tensor.to(dtype)`, which takes a microsecond also where there is nothing to do."""
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def concatenated(tensors: Sequence[torch.Tensor], dim: int = 0) -> torch.Tensor:
    """`torch.cat`; under autocast that refuses tensors of a 16-bit dtype other than autocast's."""
    kind = tensors[0].device.type
    if not torch.is_autocast_enabled(kind):
        return torch.cat([*tensors], dim)
    with torch.autocast(kind, enabled=False):
        return torch.cat([*tensors], dim)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are formed in: fp64 for fp64 inputs, fp32 for everything else."""
    return torch.float64 if dtype == torch.float64 else torch.float32
