"""A model stays as it was when something fails while it is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def unchanged_on_failure(model: nn.Module) -> Iterator[list[Callable[[], object]]]:
    """Any exception inside puts back which module is where, what is trainable and what was kept about adapters, then
    calls what stands in the list it gives, the last first.
    """
    children = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()]
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    config = model.__dict__.get("lorafam_config")
    undo: list[Callable[[], object]] = []
    try:
        yield undo
    except BaseException:
        for step in reversed(undo):
            step()
        for parent, name, child in children:
            parent._modules[name] = child
        for parameter, wanted in trainable:
            parameter.requires_grad_(wanted)
        model.__dict__.pop("lorafam_config", None)
        if config is not None:
            model.lorafam_config = config
        raise


def tied_to(model: nn.Module, module: nn.Module) -> str | None:
    """The name of another module's parameter that is this one's weight too: an output head tied to the embeddings."""
    return next(iter(all_tied_to(model, module)), None)


def all_tied_to(model: nn.Module, module: nn.Module) -> list[str]:
    """The names of all such parameters."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return []
    return [
        f"{path}.{name}" if path else name
        for path, other in model.named_modules()
        if other is not module
        for name, parameter in other.named_parameters(recurse=False)
        if parameter is weight
    ]
