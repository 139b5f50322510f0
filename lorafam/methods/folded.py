"""A base that an adapter was folded into, and the base as it was: one is in the layer, the other is kept beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from ..weights import NF4Weight
from .base_weight import base_device
from .stored_weight import put_weight, stored_weight, turned

Tensor = torch.Tensor


class Face(NamedTuple):
    """A base: its module, and what is in it, as it is stored there. `weight` is None where the module is replaced
    whole.
    """

    module: nn.Module
    weight: nn.Parameter | NF4Weight | None
    bias: nn.Parameter | None

    @classmethod
    def of(cls, base: nn.Module) -> Face:
        """What a base is now."""
        return cls(base, stored_weight(base), getattr(base, "bias", None))


class Folded:
    """`before`: the base as it was; `inside`: whether the folded one is in the layer now.

    Parameters change places, not values: one that another module shares, a table tied to a head, stays as it is there.
    """

    def __init__(self, before: Face, weight: Tensor | NF4Weight, now: nn.Module) -> None:
        self.before, self.inside = before, True
        self._weight = weight if before.weight is None else None
        self._after: Face | None = None
        # of the base that is in the layer, as it was put there
        self._dtype = dtype_of(now)

    @property
    def weight(self) -> Tensor | NF4Weight:
        """W [N, K] of the base as it was."""
        stored = self.before.weight
        return turned(self.before.module, stored) if self._weight is None else self._weight

    @torch.no_grad()
    def put(self, layer: Any, inside: bool) -> None:
        """Puts the folded base, or the base as it was, into the layer."""
        if inside == self.inside:
            return
        now: Any = layer.base_layer
        if not inside:
            self._after = Face.of(now) if now is self.before.module else Face(now, None, None)
        wanted = self._after if inside else self.before
        assert wanted is not None, "put aside before"
        base: Any = now
        device = base_device(now)
        if wanted.module is not now:
            dtype = dtype_of(now)
            layer.base_layer = wanted.module.to(device, dtype if dtype != self._dtype else None)
        elif wanted.weight is not None:
            # the model may have been moved or converted since
            if isinstance(wanted.weight, NF4Weight):
                put_weight(now, wanted.weight.to(device))
            else:
                base.weight = as_other(wanted.weight, base.weight)
            if hasattr(now, "bias"):
                like = base.bias if base.bias is not None or isinstance(wanted.weight, NF4Weight) else base.weight
                base.bias = as_other(wanted.bias, like)
        self._dtype = dtype_of(layer.base_layer)
        self.inside = inside


def dtype_of(base: nn.Module) -> torch.dtype | None:
    """Of a base's floats, if it has any."""
    return next((one.dtype for one in base.parameters() if one.is_floating_point()), None)


def check_state(layer: Any, state: Mapping[str, Any], prefix: str, errors: list[str]) -> None:
    """Raises ValueError for a state that would change a merged layer: no state says whether it was merged. Once in a
    load, which `errors`, torch's one list for all its modules, tells from others.
    """
    if not layer.merged or layer.checked_for is errors:
        return
    parts = (f"{prefix}base_layer.", f"{prefix}adapters.{layer.active_adapter}.")
    for name, tensor in layer.state_dict(prefix=prefix).items():
        given = state.get(name, tensor) if name.startswith(parts) else tensor
        if given is not tensor and (given.shape != tensor.shape or not torch.equal(given.to(tensor), tensor)):
            raise ValueError(f"state_dict: has another {name!r} than the layer, which is merged: unmerge it first")
    layer.checked_for = errors


def as_other(parameter: nn.Parameter | None, other: Tensor | None) -> nn.Parameter | None:
    """The parameter itself, or a copy of it where it isn't on the other's device or of its dtype."""
    if parameter is None or other is None or (parameter.device, parameter.dtype) == (other.device, other.dtype):
        return parameter
    return nn.Parameter(parameter.detach().to(other), parameter.requires_grad)
