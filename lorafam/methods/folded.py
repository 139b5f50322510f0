"""A base that an adapter was folded into, and the base as it was: one is in the layer, the other is kept beside it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from .base_weight import base_device, own_weight
from .stored_weight import put_weight

Tensor = torch.Tensor


class Face(NamedTuple):
    """A base: its module, and what is in it. `weight` is None where the module is replaced whole."""

    module: nn.Module
    weight: Any
    bias: nn.Parameter | None


class Folded:
    """`before`: the base as it was; `inside`: whether the folded one is in the layer now."""

    def __init__(self, before: Face) -> None:
        self.before, self.inside = before, True
        self._after: Face | None = None

    @torch.no_grad()
    def put(self, layer: Any, inside: bool) -> None:
        """Puts the folded base, or the base as it was, into the layer."""
        if inside == self.inside:
            return
        now: Any = layer.base_layer
        if not inside:
            folded = own_weight(now) if now is self.before.module else None
            folded = folded.clone() if isinstance(folded, Tensor) else folded
            self._after = Face(now, folded, getattr(now, "bias", None))
        wanted = self._after if inside else self.before
        assert wanted is not None, "put aside before"
        device = base_device(now)
        if wanted.module is not now:
            layer.base_layer = wanted.module.to(device)
        elif wanted.weight is not None:
            put_weight(now, wanted.weight.to(device))
            if hasattr(now, "bias"):
                bias = wanted.bias
                moved = bias if bias is None else nn.Parameter(bias.detach().to(device), bias.requires_grad)
                now.bias = moved  # type: ignore[assignment]
        self.inside = inside
