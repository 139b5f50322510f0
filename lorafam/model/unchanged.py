"""A model stays as it was when something fails while it is changed."""

from __future__ import annotations

import copy
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
    place = _place(weight)
    return [
        f"{path}.{name}" if path else name
        for path, other in model.named_modules()
        if other is not module
        for name, parameter in other.named_parameters(recurse=False)
        if _place(parameter) == place
    ]


def at_several_places(model: nn.Module) -> list[nn.Module]:
    """Modules that stand at more than one place of the model."""
    stands: dict[nn.Module, int] = {}
    for parent in model.modules():
        for child in parent._modules.values():
            if child is not None:
                stands[child] = stands.get(child, 0) + 1
    return [module for module, count in stands.items() if count > 1]


def for_one_place(module: nn.Module) -> nn.Module:
    """The same parameters and buffers in a module of its own, which can be given others."""
    twin = copy.copy(module)
    for name in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[name] = dict(module.__dict__[name])
    return twin


def shared_modules(model: nn.Module) -> set[nn.Module]:
    """Modules whose weight is another's too, and those that stand at several places of the model."""
    holders: dict[object, set[nn.Module]] = {}
    for parent in model.modules():
        for parameter in parent.parameters(recurse=False):
            holders.setdefault(_place(parameter), set()).add(parent)
    return set(at_several_places(model)).union(*(modules for modules in holders.values() if len(modules) > 1))


def _place(tensor: torch.Tensor) -> object:
    """What is equal for tensors that a write into one changes together: where their values begin, if they have any."""
    plain = type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_meta and tensor.numel()
    return (tensor.device, tensor.data_ptr()) if plain else id(tensor)
