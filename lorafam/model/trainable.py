"""A model's trainable tensors as they are, in one file: what resuming needs beside PEFT's format, which leaves pruned
ranks out, writes PiSSA's factors for another base and knows nothing of what is trained besides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..files import write_whole
from ..methods import AdapterLayer
from .adapt import adapter_layers
from .peft_format import apart
from .saved_module import saved_modules
from .tensor_keys import clean_path, unwrapped
from .token_rows import token_rows

Tensor = torch.Tensor

TRAINABLE = "trainable.safetensors"
_KEPT_RANKS = "kept_ranks"


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name in the bare model → tensor: all that requires gradients; of adapters, trained modules and rows
    everything, parameters that don't and buffers too.
    """
    model = unwrapped(model)
    whole: list[tuple[str, nn.Module]] = [
        (f"{path}.adapters.", layer.adapters) for path, layer in adapter_layers(model).items()
    ]
    whole += [(f"{path}.copies.", module.copies) for path, module in saved_modules(model).items()]
    whole += [(f"{path}.rows.", module.rows) for path, module in token_rows(model).items()]
    found: dict[str, Tensor] = {}
    for prefix, part in whole:
        found |= part.state_dict(prefix=prefix.lstrip("."), keep_vars=True)
    found |= {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {clean_path(name): tensor for name, tensor in found.items()}


@contextmanager
def values_of(model: nn.Module, state: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Inside, what is trained has the values that a state dict of the model has, gathered or averaged ones say.

    Raises ValueError where the state lacks one that trains now, or has one in another shape.
    """
    given = {clean_path(name).removeprefix("module."): tensor for name, tensor in (state or {}).items()}
    changed: list[tuple[nn.Module, str, Any]] = []
    wanted = trainable_tensors(model) if state is not None else {}
    for name, tensor in wanted.items():
        lacking = name not in given and tensor.requires_grad
        if lacking or (name in given and given[name].shape != tensor.shape):
            found = list(given[name].shape) if name in given else "none"
            raise ValueError(f"state_dict: expected {name!r} of shape {list(tensor.shape)}, got {found}")
    try:
        for path, module in unwrapped(model).named_modules() if wanted else ():
            for own, parameter in module._parameters.items():
                name = clean_path(f"{path}.{own}")
                if parameter is not None and name in wanted and name in given:
                    changed.append((module, own, parameter))
                    module._parameters[own] = nn.Parameter(given[name].detach(), parameter.requires_grad)
        yield
    finally:
        for module, own, parameter in changed:
            module._parameters[own] = parameter


def save_trainable(model: nn.Module, folder: Path) -> None:
    """Writes them, under a temporary name first."""
    live = trainable_tensors(model).items()
    tensors = apart({name: tensor.detach().cpu().contiguous() for name, tensor in live})
    kept = {prefix: adapter.kept_ranks for prefix, _, adapter in _allocated(model)}
    metadata = {"format": "pt", _KEPT_RANKS: json.dumps(kept)}
    write_whole(folder / TRAINABLE, lambda temporary: save_file(tensors, temporary, metadata=metadata))


@torch.no_grad()
def load_trainable(model: nn.Module, folder: Path) -> dict[Tensor, nn.Parameter]:
    """Copies the saved tensors in. AdaLoRA's factors take the file's ranks: returns old → new for those that must be
    new parameters.

    Raises ValueError, before anything is changed, where the file is damaged or the model has other tensors.
    """
    path = folder / TRAINABLE
    try:
        with safe_open(path, "pt") as file:
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            kept = json.loads((file.metadata() or {}).get(_KEPT_RANKS, "{}"))
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, not a safetensors file ({error})") from None
    live = trainable_tensors(model)
    allocated = {f"{prefix}{part}": dim for prefix, axes, _ in _allocated(model) for part, dim in axes.items()}
    told = {f"{prefix}{part}" for prefix, layer, _ in _adapters(model) for part in layer.told_state}
    for name in sorted(saved.keys() | live.keys()):
        fits = name in saved and name in live and _fits(saved[name], live[name], allocated.get(name))
        if not fits or (name in told and not torch.allclose(saved[name], live[name].cpu(), rtol=1e-6)):
            raise ValueError(f"{path} doesn't fit the model, they differ in {name}")
    replaced: dict[Tensor, nn.Parameter] = {}
    for prefix, axes, adapter in _allocated(model):
        for part in axes:
            old: nn.Parameter = getattr(adapter, part)
            value = saved[f"{prefix}{part}"]
            if value.shape != old.shape:
                # a file's tensors aren't aligned, which changes bits of a product
                moved = value.to(old.device, old.dtype, copy=True)
                new = nn.Parameter(moved, requires_grad=old.requires_grad)
                setattr(adapter, part, new)
                replaced[old] = new
        if prefix in kept:
            adapter.kept_ranks = kept[prefix]
    for name, tensor in trainable_tensors(model).items():
        tensor.copy_(saved[name])
    return replaced


def _allocated(model: nn.Module) -> Iterator[tuple[str, Mapping[str, int], Any]]:
    """Prefix of its tensors' names, the axis of the ranks in each, adapter: those whose ranks are allocated."""
    for prefix, layer, adapter in _adapters(model):
        if layer.allocates_ranks:
            yield prefix, layer.rank_axes, adapter


def _adapters(model: nn.Module) -> Iterator[tuple[str, AdapterLayer, Any]]:
    """Prefix of its tensors' names, layer, adapter."""
    for path, layer in adapter_layers(unwrapped(model)).items():
        for name, adapter in layer.adapters.items():
            yield clean_path(f"{path}.adapters.{name}.".lstrip(".")), layer, adapter


def _fits(saved: Tensor, live: Tensor, ranks: int | None) -> bool:
    """Whether the shapes are the same, in all but the dimension of the ranks."""
    dims = [dim for dim in range(live.ndim) if dim != ranks]
    return saved.ndim == live.ndim and all(saved.shape[dim] == live.shape[dim] for dim in dims)
