"""Adapters on disk, in PEFT's format both ways: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from ..compat.accelerate import loaded
from ..config import AdapterConfig, check_path
from ..files import write_text, write_whole
from ..methods import AdapterLayer
from .adapt import (
    FIRST,
    adapter_layers,
    check_model,
    new_adapter_layers,
    own_bases,
    replace_module,
    run_through_layers,
)
from .adapter_file import AdapterFile, read_adapter
from .adapters import check_name, check_new_name, disabled, put_adapter
from .base_tensors import BaseTensors, check_base, file_base_tensors, put_base_tensors, saved_base_tensors, train_biases
from .fit import check_fit, check_present, check_starts, fitting_layers, meta_twins, put_tensors
from .older_names import under_present_names
from .parameter_targets import Parameters, find_parameters, nested_paths, put_parameters
from .peft_format import TENSOR_FILE, adapter_tensors, apart
from .peft_reads import tell_of_experts
from .peft_settings import CONFIG_FILE, config_of, peft_config
from .saved_module import (
    SavedModule,
    find_saved,
    is_saved,
    outer_modules,
    put_saved,
    saved_modules,
    saved_tensors,
    take_saved,
)
from .targets import checked_targets, find_targets
from .tensor_keys import clean_path, unwrapped
from .token_row_files import put_rows, saved_rows, take_rows
from .token_rows import find_token_rows, put_token_rows, token_rows
from .tying import train_as_one
from .unchanged import tied_to, unchanged_on_failure


def save_adapter(model: nn.Module, directory: str | os.PathLike[str], adapter: str | None = None) -> None:
    """Writes the active adapter of `model`, or that called `adapter`; plain `PeftModel.from_pretrained` reads it.

    Its settings are what the adapter has now. Names are the bare model's, whatever wraps it or its layers.
    Where PiSSA, OLoRA or LoftQ took a part of the base's weight, the adapter is written for the base as it was, with
    twice the rank; of a 4-bit base that is the weight before it was quantised. Trained biases of the base, and what
    `load_adapter` put into the base from a file, are written too. Each file is written under a temporary name and
    renamed. Raises ValueError for a model that `adapt` or `load_adapter` didn't make, KeyError where no layer has an
    adapter of that name.
    """
    check_model(model)
    check_path("directory", directory)
    model = unwrapped(model)
    config = getattr(model, "lorafam_config", None)
    every = adapter_layers(model)
    if not isinstance(config, AdapterConfig) or not every:
        raise ValueError("model: expected one that lorafam.adapt or lorafam.load_adapter returned, it has no adapters")
    name = next(iter(every.values())).active_adapter if adapter is None else adapter
    check_name(every, name, "adapter")
    layers = {clean_path(path): one for path, one in every.items() if (adapter or one.active_adapter) in one.adapters}
    config = config_of(layers, adapter, config)
    folder = Path(directory)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"directory: {folder} is a file")
    with loaded(one for layer in layers.values() for one in layer.adapters.values()):
        tensors = {key: tensor.cpu() for key, tensor in adapter_tensors(layers, adapter).items()}
    one = next(iter(layers.values()))
    shared = one.shared_tensors(config, one.adapter_called(adapter))
    tensors |= {one.shared_names[attribute]: tensor for attribute, tensor in shared.items()}
    # as they are without what is merged into them
    with disabled(model):
        tensors |= saved_base_tensors(model, config.base_bias, name)
    saved, whole = saved_tensors(model, adapter)
    tokens, rows = saved_rows(model, name)
    tensors = apart(tensors | whole | rows)
    tell_of_experts(model, layers)
    text = json.dumps(peft_config(model, config, layers, saved, tokens, adapter), indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / TENSOR_FILE, lambda path: save_file(tensors, path, metadata={"format": "pt"}))
    write_text(folder / CONFIG_FILE, text)


def load_adapter(model: nn.Module, directory: str | os.PathLike[str], adapter: str | None = None) -> nn.Module:
    """Reads an adapter that lorafam or PEFT saved into `model` and returns it.

    A bare model (dense, `NF4Linear` or bitsandbytes layers) gets the adapter layers the file describes. One that has
    adapters: `adapter` names another one, which it gets beside those it has, on the file's modules, not active; or one
    that it has (None: the active one), which becomes the file's where it is on the same modules: values, rank, alpha,
    rsLoRA. Untouched are what only training asks for: the live adapters' dropout.

    A file for a base that PiSSA or OLoRA took a part of, as PEFT saves it unless told otherwise, takes it from a bare
    dense model again. Biases, embedding tables and heads that the file has whole are put into the model, which keeps
    them. Raises FileNotFoundError for a missing file, ValueError for a damaged one or one that doesn't fit and for a
    model whose adapters are merged, before the model is changed.
    """
    check_model(model)
    check_path("directory", directory)
    bare = unwrapped(model)
    file = read_adapter(Path(directory), own_module="module" in bare._modules)
    under_present_names(bare, file)
    layers = adapter_layers(bare)
    name = adapter
    if name is None:
        name = next(iter(layers.values())).active_adapter if layers else FIRST
    over = isinstance(name, str) and any(name in layer.adapters for layer in layers.values())
    if layers:
        check_present(layers, file)
        check_base(bare, file.whole)
    if not over:
        check_new_name(bare, name, "adapter")
    paths = [clean_path(path) for path, _ in bare.named_modules()]
    # PEFT writes a task's usual names, whether the model has them or not
    present = tuple(saved for saved in file.names_saved if any(path.endswith(saved) for path in paths))
    if file.ties and present:
        present += tuple(path for path in file.whole if not is_saved(path, present) and _is_tied(bare, path))
    file.config = replace(file.config, modules_to_save=present)
    beside = _parts_beside(bare, file, name if over else None)
    if not layers:
        _load_bare(bare, file, beside, name)
        if file.ties:
            train_as_one(bare, name)
        return model
    alone = len({one for layer in layers.values() for one in layer.adapters} - {name}) == 0
    if beside.base and not alone:
        raise ValueError(
            f"{TENSOR_FILE}: has another {next(iter(beside.base))!r} than the model, whose adapters share it"
        )
    if over:
        _load_over(bare, layers, file, name)
        put_base_tensors(bare, beside.base)
        train_biases(bare, file.config.base_bias)
    else:
        _load_beside(bare, file, beside, name)
    _put_beside(bare, beside, name)
    if file.ties:
        train_as_one(bare, name)
    return model


@dataclass
class _Beside:
    """What a file has beside the layers' tensors: `states` of whole modules and `rows` of tables by path, `tokens` that
    the rows are of, and tensors of the `base` that are others than the model's.
    """

    states: dict[str, dict[str, Tensor]]
    tokens: dict[str, list[int]]
    rows: dict[str, Tensor]
    base: BaseTensors


def _parts_beside(model: nn.Module, file: AdapterFile, over: str | None) -> _Beside:
    """`over` is an adapter that the model has. Raises ValueError for what doesn't fit it, or the model."""
    names = find_saved(model, file.config.modules_to_save, None)
    modules: dict[str, Any] = {path: model.get_submodule(path) for path in names}
    modules = {path: one.base_layer if isinstance(one, SavedModule) else one for path, one in modules.items()}
    tokens = find_token_rows(model, file.config)
    if over is not None:
        has = [path for path, module in saved_modules(model).items() if module.has(over)]
        if set(has) != modules.keys():
            told = f"{CONFIG_FILE}: modules_to_save = {list(file.names_saved)}, expected those of the model: {has}"
            raise ValueError(told)
        own = {path: module.tokens[over] for path, module in token_rows(model).items() if module.has(over)}
        if own != tokens:
            raise ValueError(f"{CONFIG_FILE}: trainable_token_indices = {tokens}, expected those of the model: {own}")
    states = take_saved(modules, file.whole)
    tables: dict[str, Any] = {path: model.get_submodule(path) for path in tokens}
    widths = {path: int(table.weight.shape[1]) for path, table in tables.items()}
    rows = take_rows(tokens, widths, file.whole)
    return _Beside(states, tokens, rows, file_base_tensors(model, file.whole))


def _put_beside(model: nn.Module, beside: _Beside, name: str) -> None:
    for path, module in saved_modules(model).items():
        if path in beside.states:
            put_saved(module.copies[name], beside.states[path])
    put_rows(model, beside.rows, name)


def _load_bare(model: nn.Module, file: AdapterFile, beside: _Beside, name: str) -> None:
    targets = _file_targets(model, file)
    check_starts(model, targets, file)
    parameters = find_parameters(model, file.config.target_parameters)
    fitting = fitting_layers(model, targets, parameters, file)
    with unchanged_on_failure(model) as undo:
        model.requires_grad_(False)
        made = new_adapter_layers(own_bases(model, targets), file.config, undo, name)
        for path, layer in made.items():
            put_tensors(layer.active, fitting[clean_path(path)], clean_path(path), file)
            replace_module(model, path, layer)
        put_parameters(model, parameters, file.config, name, name)
        _put_parameters(model, parameters, fitting, name, file)
        for path in beside.states:
            replace_module(model, path, SavedModule(model.get_submodule(path), name))
        put_token_rows(model, beside.tokens, name, name)
        _put_beside(model, beside, name)
        model.lorafam_config = file.config  # type: ignore[assignment]
        put_base_tensors(model, beside.base)
        train_biases(model, file.config.base_bias)
    run_through_layers(model)


def _is_tied(model: nn.Module, path: str) -> bool:
    """Whether the weight of the module that is called so in a file is another's too."""
    module = next((module for own, module in outer_modules(model).items() if clean_path(own) == path), None)
    base: Any = getattr(module, "base_layer", module)
    return base is not None and tied_to(model, base) is not None


def _put_parameters(
    model: nn.Module, parameters: Parameters, fitting: Mapping[str, AdapterLayer], name: str, file: AdapterFile
) -> None:
    for path, names in parameters.items():
        for nested in nested_paths(path, names):
            adapter: Any = model.get_submodule(nested).adapters[name]  # type: ignore[index]
            put_tensors(adapter, fitting[clean_path(nested)], clean_path(nested), file)


def _file_targets(model: nn.Module, file: AdapterFile) -> dict[str, nn.Module]:
    """The modules that the file's settings mean, or, where they name none or not all, its tensors."""
    if file.config.target_modules is not None and not file.ties:
        return find_targets(model, file.config, some=True)
    modules = {clean_path(path): path for path, _ in model.named_modules()}
    own = [
        clean_path(nested)
        for path, names in find_parameters(model, file.config.target_parameters).items()
        for nested in nested_paths(path, names)
    ]
    paths = [path for path in file.paths if path not in own]
    unknown = [path for path in paths if path not in modules]
    if unknown:
        raise ValueError(
            f"{TENSOR_FILE}: is for {unknown[0]!r}, which the model has no place for ({len(unknown)} such)"
        )
    found: dict[str, Any] = {modules[path]: model.get_submodule(modules[path]) for path in paths}
    return checked_targets(
        model, {path: one.base_layer if isinstance(one, AdapterLayer) else one for path, one in found.items()}
    )


def _load_over(model: nn.Module, layers: Mapping[str, AdapterLayer], file: AdapterFile, name: str) -> None:
    """Into the adapter that is there, which keeps its parameters where shapes allow."""
    own = {path: layer for path, layer in layers.items() if name in layer.adapters}
    methods = {layer.adapter_called(name).kind.method for layer in own.values()}
    if methods != {file.config.method}:
        raise ValueError(f"{CONFIG_FILE}: an adapter of method {file.config.method!r}, the model has {sorted(methods)}")
    fitting = meta_twins({clean_path(path): layer for path, layer in own.items()}, file.config)
    check_fit(fitting, file)
    for path, layer in own.items():
        put_tensors(layer.adapters[name], fitting[clean_path(path)], clean_path(path), file)  # type: ignore[arg-type]
    first = getattr(model, "lorafam_config", None)
    if isinstance(first, AdapterConfig) and all(layer.active_adapter == name for layer in own.values()):
        settings = ("r", "alpha", "rslora", "bias", "rank_pattern", "alpha_pattern", "base_bias")
        now = replace(first, **{setting: getattr(file.config, setting) for setting in settings})
        model.lorafam_config = now  # type: ignore[assignment]


def _load_beside(model: nn.Module, file: AdapterFile, beside: _Beside, name: str) -> None:
    """Into an adapter of another name, which is made for it."""
    targets = _file_targets(model, file)
    parameters = find_parameters(model, file.config.target_parameters)
    fitting = fitting_layers(model, targets, parameters, file)
    put_adapter(model, name, file.config, targets, list(beside.states), beside.tokens)
    layers = adapter_layers(model)
    for path in targets:
        adapter: Any = layers[path].adapters[name]
        put_tensors(adapter, fitting[clean_path(path)], clean_path(path), file)
    _put_parameters(model, parameters, fitting, name, file)
