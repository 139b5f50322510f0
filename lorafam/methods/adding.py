"""Another adapter for a layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from .. import config
from ..compat.torch import memory_of
from .adapter import AdapterSettings
from .base_weight import base_device
from .folding import take_from_base

if TYPE_CHECKING:
    from .adapter_layer import AdapterLayer


def add(
    layer: AdapterLayer, name: str, settings: AdapterSettings, own: Mapping[str, Any], kind: type[AdapterLayer]
) -> None:
    """Gives a layer an adapter that it is of the class `kind` with; the first one trains. Raises ValueError, before
    anything is changed, for a name, a setting or a base that can't be.
    """
    if not isinstance(name, str) or not name or "." in name:
        raise ValueError(f"adapter: expected a text without dots, got {name!r}")
    if name in layer.adapters:
        raise ValueError(f"adapter: expected a new name, {name!r} is there already")
    settings.check()
    kind.check(settings)
    if any(adapter.start_A is not None for adapter in layer.adapters.values()):
        raise ValueError("adapter: expected no further one, the base's weight lost a part to the first")
    from_weight = config.starts_from_weight(settings.init)
    if from_weight and layer.adapters:
        raise ValueError(f"init: {settings.init!r} changes the base's weight, expected the layer's only adapter")
    if settings.init == "loftq":
        raise ValueError("init: 'loftq' quantises the base too: lorafam.adapt with quantize='nf4' does it")
    _check_memory(layer, settings.r)
    now = type(layer)
    try:
        # its methods make the adapter
        layer.__class__ = kind
        adapter = layer.new_adapter(settings, own)
    finally:
        layer.__class__ = now
    adapter.kind = kind
    for parameter in adapter.parameters():
        # as in PEFT, whatever torch's default dtype is
        if parameter.dtype.itemsize < torch.float32.itemsize:
            parameter.data = parameter.data.float()
    if from_weight:
        take_from_base(layer.base_layer, adapter, settings.init)
    else:
        # only the active one trains
        adapter.requires_grad_(not layer.adapters)
    layer.adapters[name] = adapter


def _check_memory(layer: AdapterLayer, rank: int) -> None:
    """A slip of the keyboard mustn't become an allocation. Raises ValueError for factors that the base's device has no
    room for.
    """
    device = base_device(layer.base_layer)
    needed = rank * layer.experts * (layer.in_features + layer.out_features) * torch.float32.itemsize
    there = memory_of(device)
    if needed > there:
        told = f"{needed / 1e9:.0f} GB for A and B of rank {rank}"
        raise ValueError(f"r: expected factors that fit into memory, {told}, {device} has {there / 1e9:.0f} GB")
