"""Whether a file's tensors are those of the layers they are for, before any is made; and putting them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import AdapterLayer, LoraParameter
from ..methods.adapter import Adapter
from ..methods.base_weight import base_sizes
from ..methods.conv1d import is_conv1d
from .adapt import new_adapter_layers
from .adapter_file import AdapterFile
from .base_tensors import has_tensor
from .parameter_targets import Parameters, meta_parameters, parameter_paths, pattern_path
from .peft_format import PREFIX, TENSOR_FILE
from .peft_settings import CONFIG_FILE
from .targets import pattern_values, tell_unmatched
from .tensor_keys import clean_path
from .unchanged import tied_to


def meta_layers(bases: Mapping[str, nn.Module], config: AdapterConfig) -> dict[str, AdapterLayer]:
    """The layers that `config` means around modules of these sizes, without memory."""
    with torch.device("meta"):
        twins = {path: _twin(base) for path, base in bases.items()}
        return new_adapter_layers(twins, replace(config, init="default"), [])


def fitting_layers(
    model: nn.Module, targets: Mapping[str, nn.Module], parameters: Parameters, file: AdapterFile
) -> dict[str, AdapterLayer]:
    """The layers without memory that a file's tensors are for; ValueError where they don't fit."""
    tell_unmatched(file.config, [*map(clean_path, targets), *parameter_paths(parameters)])
    fitting = meta_layers({clean_path(path): module for path, module in targets.items()}, file.config)
    fitting |= meta_parameters(model, parameters, replace(file.config, init="default"))
    check_fit(fitting, file)
    return fitting


def meta_twins(layers: Mapping[str, AdapterLayer], config: AdapterConfig) -> dict[str, AdapterLayer]:
    """`meta_layers` in the place of layers that are there, parameters' too."""
    tell_unmatched(config, [pattern_path(path, layer) for path, layer in layers.items()])
    plain = {path: layer.base_layer for path, layer in layers.items() if not isinstance(layer, LoraParameter)}
    twins = meta_layers(plain, config)
    for path, layer in layers.items():
        if isinstance(layer, LoraParameter):
            holder = nn.ModuleDict({"one": layer.holder})
            made = meta_parameters(holder, {"one": [layer.parameter]}, _of_parameter(config, path, layer))
            twins |= {path: made["one"]}
    return twins


def _of_parameter(config: AdapterConfig, path: str, layer: LoraParameter) -> AdapterConfig:
    """The same with what its patterns give a parameter."""
    whole = pattern_path(path, layer)
    rank = pattern_values(config.rank_pattern, [whole], config.r, None)[whole]
    alpha = pattern_values(config.alpha_pattern, [whole], config.alpha, None)[whole]
    return replace(config, r=int(rank), alpha=alpha, rank_pattern={}, alpha_pattern={})


def _twin(base: nn.Module) -> nn.Module:
    if isinstance(base, nn.Embedding):
        return nn.Embedding(base.num_embeddings, base.embedding_dim)
    in_features, out_features = base_sizes(base)
    return nn.Linear(in_features, out_features, bias=False)


def check_fit(layers: Mapping[str, AdapterLayer], file: AdapterFile) -> None:
    """Raises ValueError for a tensor that is missing, has no place or another shape than the file's settings say."""
    wanted: dict[str, tuple[torch.Tensor, str, str]] = {}
    for path, layer in layers.items():
        for attribute, ending in layer.tensor_names.items():
            parameter = getattr(layer.active, attribute, None)
            if parameter is not None:
                wanted[f"{PREFIX}{path}.{ending}"] = parameter, attribute, path
    missing, unknown = sorted(wanted.keys() - file.tensors.keys()), sorted(file.tensors.keys() - wanted.keys())
    if missing or unknown:
        lacking = f"lacks {missing[0]!r}" if missing else f"has {unknown[0]!r}, which the model has no place for"
        raise ValueError(f"{TENSOR_FILE}: {lacking} ({len(missing)} missing, {len(unknown)} unknown)")
    _check_shared(layers, file)
    for path in file.kept_ranks:
        rank = layers[path].active.rank if path in layers else None
        if rank is not None and len(file.kept_ranks[path]) != rank:
            count = len(file.kept_ranks[path])
            raise ValueError(f"{CONFIG_FILE}: rank_pattern of {path!r} has {count} ranks, expected {rank} (init_r)")
    for name, (parameter, attribute, path) in wanted.items():
        expected = list(parameter.shape)
        if path in file.kept_ranks:
            expected[layers[path].rank_axes[attribute]] = sum(file.kept_ranks[path])
        if list(file.tensors[name].shape) != expected:
            raise ValueError(f"{TENSOR_FILE}: {name!r} has shape {list(file.tensors[name].shape)}, expected {expected}")


def _check_shared(layers: Mapping[str, AdapterLayer], file: AdapterFile) -> None:
    one = next(iter(layers.values()), None)
    if one is not None:
        try:
            one.check_shared(file.config, one.active, file.shared)
        except ValueError as error:
            raise ValueError(f"{TENSOR_FILE}: {error}") from None


@torch.no_grad()
def put_tensors(adapter: Adapter, like: AdapterLayer, path: str, file: AdapterFile) -> None:
    """Makes `adapter` the file's one for `path`: values and what they are multiplied by. `like` has its settings."""
    new = like.active
    adapter.kept_ranks = file.kept_ranks.get(path)
    for attribute, ending in like.tensor_names.items():
        value = file.tensors.get(f"{PREFIX}{path}.{ending}")
        old: Any = getattr(adapter, attribute, None)
        if value is None:
            if old is not None:
                delattr(adapter, attribute)
        elif old is not None and old.shape == value.shape:
            old.copy_(value)
        else:
            value = value.to(device=adapter.A.device, dtype=adapter.A.dtype)
            setattr(adapter, attribute, nn.Parameter(value.contiguous(), requires_grad=adapter.A.requires_grad))
    adapter.rank, adapter.alpha, adapter.rslora, adapter.rank_num = new.rank, new.alpha, new.rslora, new.rank_num
    adapter.scaling = new.scaling
    like.put_shared(adapter, file.shared)


def check_starts(model: nn.Module, targets: Mapping[str, nn.Module], file: AdapterFile) -> None:
    """Raises ValueError where a base can't lose the part that its adapter was started from, as PEFT takes it. Of
    embeddings none is taken.
    """
    init = file.config.init
    for path, module in targets.items() if starts_from_weight(init) else ():
        if isinstance(module, nn.Embedding):
            continue
        told = f"{CONFIG_FILE}: init_lora_weights = {init!r} is for a dense base that lost a part, {path!r}"
        dense = isinstance(module, nn.Linear) and module.weight.is_floating_point()
        # OLoRA's part of a Conv1D's weight PEFT takes the wrong way round
        if not dense and not (is_conv1d(module) and init == "pissa"):
            raise ValueError(f"{told} is a {type(module).__name__}")
        tied = tied_to(model, module)
        if tied and not has_tensor(file.whole, (f"{path}.weight", tied)):
            raise ValueError(f"{told} is tied to {tied!r}, which lost it too and isn't in the file")


def check_present(layers: Mapping[str, AdapterLayer], file: AdapterFile) -> None:
    """What holds for any model that has adapters already."""
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
