"""Inputs of a model's adapter layers, for a merge report on what the layers really see."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .adapt import expected_layers

Tensor = torch.Tensor


@torch.no_grad()
def probe_inputs(model: nn.Module, *args: Any, rows: int = 64, **kwargs: Any) -> dict[str, Tensor]:
    """Runs model(*args, **kwargs) once and returns up to `rows` inputs [T, K] of every adapter layer, by path.

    They are spread evenly over the tokens; a layer that doesn't run has none. For `merge_and_unload(probe=...)`.
    Raises ValueError for a model without adapters.
    """
    layers = expected_layers(model)
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows: expected a positive integer, got {rows!r}")
    inputs: dict[str, Tensor] = {}

    def collector(path: str) -> Any:
        def collect(_: nn.Module, given: tuple[Any, ...]) -> None:
            x = given[0].detach().reshape(-1, given[0].shape[-1])
            inputs[path] = x[torch.linspace(0, len(x) - 1, min(rows, len(x))).long().to(x.device)].float()

        return collect

    handles = [layer.register_forward_pre_hook(collector(path)) for path, layer in layers.items()]
    training = model.training
    try:
        model.eval()(*args, **kwargs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return inputs
