"""What of a base module the fast path may use: its weight, its bias and its sizes.

A base whose own forward must run (an unknown class, or one with hooks) has no usable weight: the adapter layer then
calls it and adds the low-rank part, and says so through `explain`.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import nn

from ..compat.accelerate import execution_device, loaded
from ..ops.by_storage import FLOAT_DTYPES
from ..weights import NF4Weight
from .conv1d import is_conv1d
from .frozen_linear import FrozenLinear
from .nf4_linear import NF4Linear

Tensor = torch.Tensor


_TRAINED = "the base weight is trained"


class BaseWeight(NamedTuple):
    """The frozen weight of a base module, or None with the reason why its own forward must run."""

    weight: Tensor | NF4Weight | None
    reason: str


def is_bitsandbytes_4bit(base: nn.Module) -> bool:
    """Whether `base` is bitsandbytes' Linear4bit; never imports bitsandbytes."""
    library = sys.modules.get("bitsandbytes")
    return library is not None and isinstance(base, library.nn.Linear4bit)


def holds_codes(base: nn.Module) -> bool:
    """Whether its weight is 4-bit codes, lorafam's or bitsandbytes'."""
    return isinstance(base, NF4Linear) or is_bitsandbytes_4bit(base)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def base_weight(base: nn.Module) -> BaseWeight:
    """The weight the fast path multiplies by."""
    if has_hooks(base):
        return BaseWeight(None, "the base layer has hooks: its own forward runs")
    if isinstance(base, NF4Linear):
        return BaseWeight(base.weight, "4-bit weight")
    if is_bitsandbytes_4bit(base):
        return BaseWeight(NF4Weight.from_bitsandbytes(base), "bitsandbytes 4-bit weight, shared")
    if type(base) in (nn.Linear, FrozenLinear):
        weight: Any = base.weight
        return BaseWeight(None, _TRAINED) if weight.requires_grad else BaseWeight(weight, "dense weight")
    if is_conv1d(base):
        if base.weight.requires_grad:
            return BaseWeight(None, _TRAINED)
        return BaseWeight(base.weight.T, "dense weight, transposed")  # type: ignore[arg-type]
    if isinstance(base, nn.Embedding):
        return BaseWeight(base.weight.T, "a look-up and a small product: nothing to fuse")
    return BaseWeight(None, f"{type(base).__name__} is not a layer whose weight is known: its own forward runs")


def own_weight(base: nn.Module) -> Tensor | NF4Weight | None:
    """The weight [N, K] to read or replace, of a base with hooks or of a class derived from nn.Linear too; None where
    it isn't known, or isn't there now (offloaded, sharded).
    """
    if isinstance(base, NF4Linear):
        return None if base.weight.codes.is_meta else base.weight
    if is_bitsandbytes_4bit(base):
        return NF4Weight.from_bitsandbytes(base)
    weight: Any = getattr(base, "weight", None)
    if type(weight) not in (nn.Parameter, Tensor) or weight.dtype not in FLOAT_DTYPES or weight.is_meta:
        return None
    if is_conv1d(base) or isinstance(base, nn.Embedding):
        return weight.T
    return weight if isinstance(base, nn.Linear) and weight.ndim == 2 else None


def base_sizes(base: nn.Module) -> tuple[int, int]:
    """(K, N) of a base module; raises ValueError where it doesn't tell."""
    if is_conv1d(base):
        return base.weight.shape[0], base.weight.shape[1]  # type: ignore[index,return-value]
    try:
        return int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
    except AttributeError:
        raise ValueError(
            f"base: expected a module with in_features and out_features, {type(base).__name__} has none"
        ) from None


def base_device(base: nn.Module) -> torch.device:
    """Where the adapter's tensors belong: where an offloaded base computes."""
    for tensor in (*base.parameters(), *base.buffers()):
        return (execution_device(base) or tensor.device) if tensor.is_meta else tensor.device
    return torch.device("cpu")


@torch.no_grad()
def dense_base_weight(base: nn.Module) -> Tensor:
    """W [N, K] in fp32 (fp64 for an fp64 base), for merging and for norms: decoded, or, for a module of unknown class,
    read off by feeding it the identity.
    """
    weight = own_weight(base)
    if isinstance(weight, NF4Weight):
        return weight.dequantize(torch.float32)
    if weight is not None:
        return weight.to(torch.promote_types(weight.dtype, torch.float32))
    if isinstance(base, nn.Embedding):
        with loaded([base]):
            return base.weight.T.to(torch.promote_types(base.weight.dtype, torch.float32))
    in_features, _ = base_sizes(base)
    dtype = next((p.dtype for p in base.parameters() if p.is_floating_point()), torch.float32)
    identity = torch.eye(in_features, dtype=dtype, device=base_device(base))
    offset = base(identity.new_zeros(1, in_features))
    columns = base(identity) - offset
    return columns.T.to(torch.promote_types(dtype, torch.float32)).contiguous()
