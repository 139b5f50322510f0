"""What evaluation keeps of DoRA, and how it knows that it still holds.

No version counter tells of every write: `.data`, fused and bitsandbytes' optimisers, weight averaging and FSDP2 change
a parameter without one. The factors are compared with copies, r (K + N) elements. Of the frozen weight, which isn't
read as a whole for that, the memory, the version and, on a CPU, a diagonal.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..compat.torch import is_transformed
from ..weights import NF4Weight

Tensor = torch.Tensor
Weight = Tensor | NF4Weight

# `torch.equal` takes 3 µs for what this does in half of one
_memcmp = ctypes.CDLL(None if os.name == "posix" else "msvcrt").memcmp
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class KeptNorm:
    """A value formed of a weight (or of several tensors of a base), and of tensors whose values are compared."""

    __slots__ = ("_compared", "_copies", "_places", "_scale", "_weights", "value")

    def __init__(
        self, value: Tensor, weights: Sequence[Weight], tensors: Sequence[Tensor] = (), scale: Any = None
    ) -> None:
        self.value = value
        self._weights = [_Seen(one) for one in weights]
        # an alias holds the memory; the parameter itself may get another
        self._compared = [one.detach() for one in tensors]
        self._copies = [one.contiguous().clone() for one in self._compared]
        places = zip(self._compared, self._copies, strict=True)
        self._places = [(one.data_ptr(), copy.data_ptr() if one.is_cpu else 0, copy.nbytes) for one, copy in places]
        self._scale = scale.detach().clone() if isinstance(scale, Tensor) else scale

    def holds(self, weights: Sequence[Weight], tensors: Sequence[Tensor] = (), scale: Any = None) -> bool:
        """Whether the same would be formed of them now."""
        for index, (tensor, (place, copy, nbytes)) in enumerate(zip(tensors, self._places, strict=True)):
            if tensor.data_ptr() != place or not tensor.is_contiguous():
                return False
            if _memcmp(place, copy, nbytes) if copy else not torch.equal(tensor, self._copies[index]):
                return False
        if len(weights) != len(self._weights):
            return False
        for weight, seen in zip(weights, self._weights, strict=True):
            if not seen.holds(weight):
                return False
        return bool(scale == self._scale)

    def __reduce__(self) -> Any:
        # a copy has other memory
        return type(None), ()


class _Seen:
    """A weight as it was."""

    __slots__ = ("_alias", "_copy", "_diagonal", "_place", "_versions")

    def __init__(self, weight: Weight) -> None:
        self._diagonal: Tensor | None = None
        if isinstance(weight, NF4Weight):
            self._alias: Any = weight
            self._place, self._versions = weight.codes.data_ptr(), weight.versions()
            return
        self._alias = alias = weight.detach()
        self._place, self._versions = weight.data_ptr(), _versions(weight)
        if type(weight) in (Tensor, nn.Parameter) and weight.is_cpu and weight.ndim == 2:
            # elsewhere comparing would wait for the device
            self._diagonal = alias.diagonal()
            self._copy = self._diagonal.clone()

    def holds(self, weight: Weight) -> bool:
        if isinstance(weight, NF4Weight):
            same = weight is self._alias or weight.codes.data_ptr() == self._place
            return same and weight.versions() == self._versions
        if weight.data_ptr() != self._place or _versions(weight) != self._versions:
            return False
        return self._diagonal is None or torch.equal(self._diagonal, self._copy)


def squared_norms(known: KeptNorm | None, weight: Tensor) -> KeptNorm:
    """‖w_j‖² of a dense weight [N, K] per row, in fp32 or wider: `known`, as long as it holds."""
    if known is not None and known.holds((weight,)):
        return known
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return KeptNorm(torch.linalg.vector_norm(weight.detach(), dim=1, dtype=torch.float64).square().to(dtype), [weight])


def may_keep(device: torch.device) -> bool:
    """Whether anything can be compared now: not while a graph is compiled or captured, or a transform runs."""
    if torch.compiler.is_compiling() or is_transformed():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def _versions(tensor: Tensor) -> tuple[int, ...]:
    return (0 if tensor.is_inference() else tensor._version,)
