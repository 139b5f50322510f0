"""Pruned AdaLoRA ranks removed for good: from the factors, from their gradients and from the optimiser's state.

A rank whose E is 0 and stays 0 adds nothing to the output, but is computed, and its state kept, like any other. A, E
and B become new, smaller parameters in the optimiser's groups; DistributedDataParallel, whose buckets have the old
sizes, is set up anew around the same model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..compat.torch import set_up_anew
from ..methods import AdaLoraLinear
from .paged_adamw import PagedAdamW

Tensor = torch.Tensor


@torch.no_grad()
def compact_layers(
    layers: Iterable[AdaLoraLinear],
    optimizer: torch.optim.Optimizer | None = None,
    ddp: DistributedDataParallel | None = None,
) -> int:
    """Drops the ranks that aren't in `kept_ranks`; returns how many.

    Raises NotImplementedError, before anything is changed, where the optimiser's state of a factor isn't of the
    factor's shape; RuntimeError where several processes train and their DistributedDataParallel isn't given.
    """
    chosen = [(layer, kept) for layer in layers if (kept := _to_drop(layer)) is not None]
    if not chosen:
        return 0
    if ddp is None and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise RuntimeError(
            "ddp: expected the DistributedDataParallel around the model, whose buckets have the old sizes"
        )
    state = {} if optimizer is None else optimizer.state
    for layer, _ in chosen:
        for factor in (layer.A, layer.E, layer.B):
            _check_state(factor, state.get(factor, {}), optimizer)
    dropped, replaced = 0, {}
    for layer, kept in chosen:
        dropped += layer.A.shape[0] - len(kept)
        for old, new, dim in layer.keep_ranks(kept):
            replaced[old] = new
            if old in state:
                state[new] = {name: _kept(value, old, kept, dim) for name, value in state.pop(old).items()}
    for group in [] if optimizer is None else optimizer.param_groups:
        group["params"] = [replaced.get(parameter, parameter) for parameter in group["params"]]
    # accelerate puts a wrapper around an optimiser
    paged = getattr(optimizer, "optimizer", optimizer)
    if isinstance(paged, PagedAdamW):
        paged.adopt()
    if ddp is not None:
        set_up_anew(ddp)
    return dropped


def _to_drop(layer: AdaLoraLinear) -> Tensor | None:
    """The ranks to keep, where others are there."""
    kept = layer.active.kept_ranks
    if kept is None or len(kept) != layer.A.shape[0] or all(kept):
        return None
    return torch.tensor(kept, device=layer.A.device).nonzero().squeeze(1)


def _check_state(factor: nn.Parameter, state: dict[str, Any], optimizer: Any) -> None:
    for name, value in state.items():
        if isinstance(value, Tensor) and value.numel() != 1 and value.shape != factor.shape:
            raise NotImplementedError(
                f"compact: {type(optimizer).__name__} keeps {name} {list(value.shape)} for a factor "
                f"{list(factor.shape)}: its ranks can't be told apart there"
            )


def _kept(value: Any, old: nn.Parameter, kept: Tensor, dim: int) -> Any:
    if isinstance(value, Tensor) and value.shape == old.shape:
        return value.index_select(dim, kept.to(value.device))
    return value
