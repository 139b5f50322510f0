"""Adapters on disk, in PEFT's format both ways: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import AdapterLayer
from .adapt import adapter_layers, new_adapter_layers, replace_module, run_through_layers
from .adapter_file import AdapterFile, read_adapter
from .adapters import add_adapter, check_name
from .fit import check_fit, meta_layers, put_tensors
from .peft_format import TENSOR_FILE, adapter_tensors
from .peft_settings import CONFIG_FILE, config_of, peft_config
from .saved_module import SavedModule, find_saved, put_saved, saved_modules, saved_tensors, take_saved
from .tables import Table, file_tables, put_tables, saved_tables
from .targets import checked_targets, find_targets
from .tensor_keys import clean_path, unwrapped
from .unchanged import unchanged_on_failure


def save_adapter(model: nn.Module, directory: str | os.PathLike[str], adapter: str | None = None) -> None:
    """Writes the active adapters of `model`, or those called `adapter`; plain `PeftModel.from_pretrained` reads them.

    Their settings are what the adapters have now. Names are the bare model's, whatever wraps it or its layers.
    Where PiSSA, OLoRA or LoftQ took a part of the base's weight, the adapter is written for the base as it was, with
    twice the rank; of a 4-bit base that is the weight before it was quantised. A table that `load_adapter` took from a
    file is written again. Each file is written under a temporary name and renamed. Raises ValueError for a model that
    `adapt` or `load_adapter` didn't make, KeyError where a layer has no adapter of that name.
    """
    model = unwrapped(model)
    config = getattr(model, "lorafam_config", None)
    layers = adapter_layers(model)
    if not isinstance(config, AdapterConfig) or not layers:
        raise ValueError("model: expected one that lorafam.adapt or lorafam.load_adapter returned, it has no adapters")
    if adapter is not None:
        for path, layer in layers.items():
            check_name(path, layer, adapter, "adapter")
    layers = {clean_path(path): layer for path, layer in layers.items()}
    config = config_of(layers, adapter, config)
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"directory: {folder} is a file")
    tensors = {name: tensor.cpu() for name, tensor in adapter_tensors(layers, adapter).items()}
    tensors |= saved_tables(model)
    saved, whole = saved_tensors(model, adapter)
    tensors |= whole
    text = json.dumps(peft_config(model, config, layers, saved, adapter), indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / TENSOR_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    _write(folder / CONFIG_FILE, lambda path: path.write_text(text, encoding="utf-8"))


def load_adapter(model: nn.Module, directory: str | os.PathLike[str], adapter: str | None = None) -> nn.Module:
    """Reads an adapter that lorafam or PEFT saved into `model` and returns it.

    A bare model (dense, `NF4Linear` or bitsandbytes layers) gets the adapter layers the file describes. One that has
    adapters must have them on the file's modules; its active ones become the file's: values, rank, alpha, rsLoRA.
    `adapter` names another one, which such a model gets beside those it has, not active. Untouched are what only
    training asks for: the live adapters' dropout.

    A file for a base that PiSSA or OLoRA took a part of, as PEFT saves it unless told otherwise, takes it from a bare
    dense model again. Embedding tables and heads that the file has whole are put into the model, which keeps them.
    Raises FileNotFoundError for a missing file, ValueError for a damaged one or one that doesn't fit and for a model
    whose adapters are merged, before the model is changed.
    """
    file = read_adapter(Path(directory))
    bare = unwrapped(model)
    layers = adapter_layers(bare)
    if not layers and adapter is not None:
        raise ValueError("adapter: expected a model that has adapters, it has none yet")
    paths = [clean_path(path) for path, _ in bare.named_modules()]
    # PEFT writes a task's usual names, whether the model has them or not
    present = tuple(name for name in file.names_saved if any(path.endswith(name) for path in paths))
    file.config = replace(file.config, modules_to_save=present)
    modules = _saved_in(bare, file)
    states = take_saved(modules, file.whole)
    tables = file_tables(bare, file.whole)
    if not layers:
        _load_bare(bare, file, tables, states)
        return model
    _check_present(layers, file)
    if adapter is None:
        _load_over(bare, layers, file)
        put_tables(bare, tables)
        for path, module in saved_modules(bare).items():
            if path in states:
                put_saved(module.active, states[path])
    elif tables:
        raise ValueError(
            f"{TENSOR_FILE}: has another table of {next(iter(tables))!r} than the model, whose adapters share it"
        )
    else:
        _load_beside(bare, layers, adapter, file)
        for path, module in saved_modules(bare).items():
            if path in states:
                put_saved(module.copies[adapter], states[path])
    return model


def _saved_in(model: nn.Module, file: AdapterFile) -> dict[str, nn.Module]:
    """Path → the module that a file's modules_to_save mean; ValueError where a model with adapters has others."""
    if not adapter_layers(model):
        names = find_saved(model, file.config.modules_to_save, None)
        return {path: model.get_submodule(path) for path in names}
    known = saved_modules(model)
    active = {path: module for path, module in known.items() if module.active_adapter in module.copies}
    wanted = {path: module for path, module in known.items() if clean_path(path).endswith(file.names_saved)}
    if wanted.keys() != active.keys() or (file.names_saved and not wanted):
        raise ValueError(
            f"{CONFIG_FILE}: modules_to_save = {list(file.names_saved)}, expected those of the model: {list(active)}"
        )
    return {path: module.base_layer for path, module in wanted.items()}


def _load_bare(
    model: nn.Module, file: AdapterFile, tables: Mapping[str, Table], states: Mapping[str, Mapping[str, Tensor]]
) -> None:
    targets = _file_targets(model, file)
    again = starts_from_weight(file.config.init)
    for path, module in targets.items():
        if again and not (isinstance(module, nn.Linear) and module.weight.is_floating_point()):
            raise ValueError(
                f"{CONFIG_FILE}: init_lora_weights = {file.config.init!r} is for a dense base that lost a part, "
                f"{path!r} is a {type(module).__name__}"
            )
    fitting = meta_layers({clean_path(path): module for path, module in targets.items()}, file.config)
    check_fit(fitting, file)
    with unchanged_on_failure(model) as undo:
        model.requires_grad_(False)
        made = new_adapter_layers(targets, file.config, undo)
        for path, layer in made.items():
            put_tensors(layer.active, fitting[clean_path(path)], clean_path(path), file)
            replace_module(model, path, layer)
        for path, state in states.items():
            saved = SavedModule(model.get_submodule(path), "default")
            put_saved(saved.active, state)
            replace_module(model, path, saved)
        model.lorafam_config = file.config  # type: ignore[assignment]
        put_tables(model, tables)
    run_through_layers(model)


def _file_targets(model: nn.Module, file: AdapterFile) -> dict[str, nn.Module]:
    """The modules that the file's settings mean, or, where they name none, its tensors."""
    if file.config.target_modules is not None:
        return find_targets(model, file.config)
    modules = {clean_path(path): path for path, _ in model.named_modules()}
    unknown = [path for path in file.paths if path not in modules]
    if unknown:
        raise ValueError(
            f"{TENSOR_FILE}: is for {unknown[0]!r}, which the model has no place for ({len(unknown)} such)"
        )
    return checked_targets(model, {modules[path]: model.get_submodule(modules[path]) for path in file.paths})


def _check_present(layers: Mapping[str, AdapterLayer], file: AdapterFile) -> None:
    """What holds for any model that has adapters already."""
    methods = {layer.method for layer in layers.values()}
    if methods != {file.config.method}:
        raise ValueError(f"{CONFIG_FILE}: an adapter of method {file.config.method!r}, the model has {sorted(methods)}")
    for path, layer in layers.items():
        if layer.merged:
            raise ValueError(f"model: {path!r} is merged, unmerge it before another adapter is loaded")
        if any(adapter.start_A is not None for adapter in layer.adapters.values()):
            raise ValueError(f"model: the base of {path!r} lost a part to its first adapter, expected it as it was")
    if starts_from_weight(file.config.init):
        raise ValueError(
            f"{CONFIG_FILE}: init_lora_weights = {file.config.init!r} takes a part of the base, expected a model "
            "without adapters"
        )


def _load_over(model: nn.Module, layers: Mapping[str, AdapterLayer], file: AdapterFile) -> None:
    """Into the active adapters, which keep their parameters where shapes allow."""
    fitting = meta_layers({clean_path(path): layer.base_layer for path, layer in layers.items()}, file.config)
    check_fit(fitting, file)
    for path, layer in layers.items():
        put_tensors(layer.active, fitting[clean_path(path)], clean_path(path), file)
    first = getattr(model, "lorafam_config", None)
    if isinstance(first, AdapterConfig):
        settings = ("r", "alpha", "rslora", "bias", "rank_pattern", "alpha_pattern")
        now = replace(first, **{name: getattr(file.config, name) for name in settings})
        model.lorafam_config = now  # type: ignore[assignment]


def _load_beside(model: nn.Module, layers: Mapping[str, AdapterLayer], name: str, file: AdapterFile) -> None:
    """Into adapters of another name, which are made for it."""
    fitting = meta_layers({clean_path(path): layer.base_layer for path, layer in layers.items()}, file.config)
    check_fit(fitting, file)
    add_adapter(model, name, file.config)
    for path, layer in layers.items():
        put_tensors(layer.adapters[name], fitting[clean_path(path)], clean_path(path), file)  # type: ignore[arg-type]


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
