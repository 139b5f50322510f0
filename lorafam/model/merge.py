"""Merging a whole model: every adapter folded into its base, and the bare base put back in its place."""

from __future__ import annotations

from torch import nn

from ..methods import MergeReport
from .adapt import adapter_layers, remove_adapters


def merge_and_unload(model: nn.Module, safe: bool = True) -> dict[str, MergeReport]:
    """Merges all adapters and removes the adapter layers: dense layers are plain nn.Linear again. Path → what it cost.

    Raises ValueError for a model without adapters, TypeError for a base whose weight can't be replaced.
    """
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("model: expected one with adapters, it has none")
    reports = {path: layer.merge(safe) for path, layer in layers.items()}
    remove_adapters(model)
    return reports
