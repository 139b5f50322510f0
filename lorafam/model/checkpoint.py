"""Adapters on disk, in PEFT's format both ways: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..config import AdapterConfig
from ..methods import AdapterLayer, LoraEmbedding
from .adapt import adapt, adapter_layers, remove_adapters
from .adapters import add_adapter, check_name
from .peft_format import (
    CONFIG_FILE,
    PREFIX,
    TENSOR_FILE,
    adapter_config,
    adapter_tensors,
    config_of,
    names_of,
    peft_config,
)


def save_adapter(model: nn.Module, directory: str | os.PathLike[str], adapter: str | None = None) -> None:
    """Writes the active adapters of `model`, or those called `adapter`; plain `PeftModel.from_pretrained` reads them.

    Where PiSSA, OLoRA or LoftQ took a part of the base's weight, the adapter is written for the base as it was, with
    twice the rank; of a 4-bit base that is the weight before it was quantised.
    Each file is written under a temporary name and renamed. Raises ValueError for a model that `adapt` or
    `load_adapter` didn't make, KeyError where a layer has no adapter of that name.
    """
    config = getattr(model, "lorafam_config", None)
    layers = adapter_layers(model)
    if not isinstance(config, AdapterConfig) or not layers:
        raise ValueError("model: expected one that lorafam.adapt or lorafam.load_adapter returned, it has no adapters")
    if adapter is not None:
        for path, layer in layers.items():
            check_name(path, layer, adapter, "adapter")
        config = config_of(layers, adapter, config)
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"directory: {folder} is a file")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.cpu() for name, tensor in adapter_tensors(layers, adapter).items()}
    _write(folder / TENSOR_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    text = json.dumps(peft_config(model, config, layers), indent=2, sort_keys=True) + "\n"
    _write(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def load_adapter(model: nn.Module, directory: str | os.PathLike[str], adapter: str | None = None) -> nn.Module:
    """Reads an adapter that lorafam or PEFT saved into `model` and returns it.

    A bare model (dense, `NF4Linear` or bitsandbytes layers) gets the adapter layers the file describes; one that
    `adapt` made must have the same. `adapter` names another one, which such a model gets beside those it has, not
    active; the file must be of the same method and modules. Raises FileNotFoundError for a missing file, ValueError for
    a damaged one or one that doesn't fit, before the model is changed.
    """
    folder = Path(directory)
    values = read_config(folder / CONFIG_FILE)
    config = adapter_config(values)
    tensors = read_tensors(folder / TENSOR_FILE)
    rank_pattern = values.get("rank_pattern") if config.method == "adalora" else None
    layers = adapter_layers(model)
    if layers:
        _check_method(layers, config)
        if adapter is None:
            load_tensors(layers, tensors, rank_pattern)
        else:
            _load_beside(model, layers, adapter, config, tensors, rank_pattern)
        return model
    if adapter is not None:
        raise ValueError("adapter: expected a model that has adapters, it has none yet")
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    adapt(model, config)
    try:
        load_tensors(adapter_layers(model), tensors, rank_pattern)
    except ValueError:
        remove_adapters(model)
        for parameter in trainable:
            parameter.requires_grad_(True)
        raise
    return model


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_config(path: Path) -> dict[str, Any]:
    """adapter_config.json. Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"directory: {path.parent} has no {path.name}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: damaged, expected an object")
    return values


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """adapter_model.safetensors. Raises FileNotFoundError, ValueError."""
    if not path.is_file():
        raise FileNotFoundError(f"directory: {path.parent} has no {path.name}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: damaged, not a safetensors file ({error})") from None


def _check_method(layers: dict[str, AdapterLayer], config: AdapterConfig) -> None:
    methods = {layer.method for layer in layers.values()}
    if methods != {config.method}:
        raise ValueError(f"{CONFIG_FILE}: an adapter of method {config.method!r}, the model has {sorted(methods)}")


def _load_beside(
    model: nn.Module,
    layers: dict[str, AdapterLayer],
    name: str,
    config: AdapterConfig,
    tensors: dict[str, torch.Tensor],
    rank_pattern: dict[str, list[bool]] | None,
) -> None:
    """Loads into adapters of another name, which are made for it."""
    add_adapter(model, name, config)
    active = {path: layer.active_adapter for path, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.active_adapter = name
        load_tensors(layers, tensors, rank_pattern)
    except ValueError:
        for layer in layers.values():
            del layer.adapters[name]
        raise
    finally:
        for path, layer in layers.items():
            layer.active_adapter = active[path]


def load_tensors(
    layers: dict[str, AdapterLayer],
    tensors: dict[str, torch.Tensor],
    rank_pattern: dict[str, list[bool]] | None,
    *,
    dry: bool = False,
) -> None:
    """Checks every tensor first, then copies them in, unless `dry`. Raises ValueError for one that doesn't fit."""
    wanted: dict[str, tuple[AdapterLayer, str]] = {}
    for path, layer in layers.items():
        for attribute, ending in names_of(layer).items():
            if getattr(layer.active, attribute, None) is not None:
                wanted[f"{PREFIX}{path}.{ending}"] = layer, attribute
    for path, layer in layers.items():
        if isinstance(layer, LoraEmbedding):
            # PEFT writes the table too
            tensors = _without_table(tensors, f"{PREFIX}{path}.base_layer.weight", layer)
    missing, unknown = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        problem = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which the model has no place for"
        raise ValueError(f"{TENSOR_FILE}: {problem} ({len(missing)} missing, {len(unknown)} unknown)")
    kept = {path: (rank_pattern or {}).get(f"{path}.lora_E") for path in layers}
    for path, layer in layers.items():
        for name, (owner, attribute) in ((n, w) for n, w in wanted.items() if w[0] is layer):
            _check_shape(name, tensors[name], getattr(owner.active, attribute), attribute, kept[path])
    if dry:
        return
    with torch.no_grad():
        for path, layer in layers.items():
            if kept[path] is not None:
                layer.active.kept_ranks = kept[path]
        for name, (layer, attribute) in wanted.items():
            parameter = getattr(layer.active, attribute)
            value = tensors[name].to(parameter)
            if value.shape == parameter.shape:
                parameter.copy_(value)
            else:
                setattr(layer.active, attribute, nn.Parameter(value, requires_grad=parameter.requires_grad))
    for layer in layers.values():
        # anything a layer keeps about its adapter is stale now
        layer.train(layer.training)


def _without_table(tensors: dict[str, torch.Tensor], name: str, layer: AdapterLayer) -> dict[str, torch.Tensor]:
    table: Any = layer.base_layer.weight
    given = tensors.get(name)
    if given is not None and not (given.shape == table.shape and torch.equal(given.to(table), table)):
        raise ValueError(f"{TENSOR_FILE}: {name!r} is another table than the model's, which stays as it is")
    return {other: tensor for other, tensor in tensors.items() if other != name}


def _check_shape(
    name: str, tensor: torch.Tensor, parameter: torch.Tensor, attribute: str, kept: list[bool] | None
) -> None:
    expected = list(parameter.shape)
    if kept is not None:
        expected[1 if attribute == "B" else 0] = sum(kept)
    if list(tensor.shape) != expected:
        raise ValueError(f"{TENSOR_FILE}: {name!r} has shape {list(tensor.shape)}, expected {expected}")
