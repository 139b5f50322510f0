"""`adapt`: puts adapter layers on a model, in place."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..compat.torch import before_loading
from ..config import AdapterConfig, starts_from_weight
from ..methods import METHODS, AdapterLayer, NF4Linear
from ..methods.adapter import AdapterSettings
from ..methods.base_weight import dense_base_weight
from ..methods.conv1d import is_conv1d
from ..methods.folded import check_state
from ..methods.frozen_linear import freeze_layer, frozen_layers
from ..methods.gated_mlp import gate_mlps
from ..methods.initialisers import loftq
from ..methods.registry import EMBEDDINGS, layer_class
from ..weights import quantize_nf4
from .base_tensors import train_biases
from .parameter_targets import find_parameters, parameter_paths, put_parameters
from .saved_module import SavedModule, find_saved, inside
from .targets import find_targets, output_head, pattern_values, tell_unmatched
from .tensor_keys import unwrapped
from .token_rows import TokenRows, find_token_rows, put_token_rows
from .unchanged import at_several_places, for_one_place, shared_modules, tied_to, unchanged_on_failure
from .weight_readers import rescaler_of, stop_fast_paths, watch_head

# what a model's first adapter is called
FIRST = "default"


def adapt(model: nn.Module, config: AdapterConfig) -> nn.Module:
    """Freezes `model`, quantises its linear layers where the config says so, and wraps its target modules.

    Returns the same model, its adapters trainable and everything else frozen. Raises TypeError for another config,
    ValueError for a model that has adapters already, a target that isn't there, one that can't have this adapter, a
    weight that isn't finite or is tied, where it would be changed. The model is then as it was. Until it returns, it
    holds what it replaces: dense weights beside their 4-bit codes.
    """
    check_model(model)
    given, model = model, unwrapped(model)
    if not isinstance(config, AdapterConfig):
        raise TypeError(f"config: expected a lorafam.AdapterConfig, got {type(config).__name__}")
    if any(isinstance(module, AdapterLayer) for module in model.modules()):
        raise ValueError("model: expected one without adapters, it has some already")
    targets = find_targets(model, config)
    check_targets(model, targets, config)
    rows = find_token_rows(model, config)
    parameters = find_parameters(model, config.target_parameters)
    tell_unmatched(config, [*targets, *parameter_paths(parameters)])
    with unchanged_on_failure(model) as undo:
        model.requires_grad_(False)
        for path, module in new_modules(model, targets, config, undo).items():
            replace_module(model, path, module)
        put_parameters(model, parameters, config, FIRST, FIRST)
        put_token_rows(model, rows, FIRST, FIRST)
        train_biases(model, config.base_bias)
        model.lorafam_config = config  # type: ignore[assignment]
    run_through_layers(model)
    return given


def run_through_layers(model: nn.Module) -> None:
    """For a whole model whose adapters are in: no path past them, large frozen layers on the faster product, what
    gated MLPs save, and transformers told of them.
    """
    # it saves and loads adapted models
    from .pretrained import answer_for

    answer_for(model)
    stop_fast_paths(model)
    watch_head(model)
    before_loading(model, _check_state)
    for _, layer in frozen_layers(model, (AdapterLayer, SavedModule, TokenRows)):
        freeze_layer(layer)
    gate_mlps(model)


def _check_state(model: nn.Module, state: Mapping[str, Any], prefix: str, *told: Any) -> None:
    """Before a state is loaded into any layer."""
    for path, layer in adapter_layers(model).items():
        check_state(layer, state, f"{prefix}{path}.", told[-1])


def new_modules(
    model: nn.Module, targets: dict[str, nn.Module], config: AdapterConfig, undo: list[Callable[[], object]]
) -> dict[str, nn.Module]:
    """Path → the adapter layer or 4-bit layer that takes a module's place; `undo` gets what puts changed bases back."""
    first = starts_from_weight(config.init)
    dense = _dense_layers(model, config) if config.quantize is not None else {}
    _tell_of_dense(model, config)
    made: dict[str, nn.Module] = {}
    if not first:
        made = {path: NF4Linear.from_linear(module, **_quantisation(config)) for path, module in dense.items()}
    bases = {path: made.get(path, module) for path, module in own_bases(model, targets).items()}
    layers = new_adapter_layers(bases, config, undo)
    saved = {path: SavedModule(model.get_submodule(path), FIRST) for path in _saved(model, config)}
    if first:
        # what is taken from a weight is taken before it is quantised
        for path, module in dense.items():
            if path not in layers:
                made[path] = NF4Linear.from_linear(module, **_quantisation(config))
            elif type(layers[path].base_layer) is type(module):
                layers[path].base_layer = NF4Linear.from_linear(module, **_quantisation(config))
    return {**made, **layers, **saved}


def own_bases(model: nn.Module, targets: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The modules that layers are put around: merged, a layer changes its base at its own place alone."""
    several = at_several_places(model)
    return {path: for_one_place(module) if module in several else module for path, module in targets.items()}


def new_adapter_layers(
    bases: Mapping[str, nn.Module],
    config: AdapterConfig,
    undo: list[Callable[[], object]],
    name: str = FIRST,
    own: Mapping[str, Any] | None = None,
) -> dict[str, AdapterLayer]:
    """The adapter layers that `config` means around `bases`, by path, of an adapter called `name`; `own` are the
    method's `layer_settings`, where it is on others too.
    """
    paths = list(bases)
    ranks = pattern_values(config.rank_pattern, paths, config.r, "rank_pattern")
    alphas = pattern_values(config.alpha_pattern, paths, config.alpha, "alpha_pattern")
    if own is None:
        own = METHODS[config.method].layer_settings(config, bases.values())
    make = _loftq_layer if config.init == "loftq" else new_adapter_layer
    layers = {}
    for path, base in bases.items():
        if starts_from_weight(config.init):
            undo.append(_putting_back(base))
        try:
            layers[path] = make(base, config, int(ranks[path]), alphas[path], name, own)
        except (RuntimeError, TypeError, ValueError) as error:
            raise type(error)(f"{path}: {error}") from error
    return layers


def check_targets(model: nn.Module, targets: dict[str, nn.Module], config: AdapterConfig) -> None:
    """What can be known before anything is built."""
    first = starts_from_weight(config.init)
    for path, module in targets.items():
        plain = config.method in EMBEDDINGS and not config.bias
        if isinstance(module, nn.Embedding) and not plain:
            raise ValueError(
                f"target_modules: {path!r} is an embedding: expected method {' or '.join(map(repr, EMBEDDINGS))}, "
                "no bias"
            )
        if config.init == "loftq" and type(module) is not nn.Linear and not is_conv1d(module):
            raise ValueError(
                f"init: 'loftq' needs the weight before it is quantised, {path!r} is a {type(module).__name__}"
            )
        tied = tied_to(model, module) if first and not isinstance(module, nn.Embedding) else None
        if tied is not None:
            raise ValueError(
                f"init: {config.init!r} takes a part of the weight of {path!r}, which is tied to {tied!r} and would "
                "change that too; untie it first, or leave it out of target_modules"
            )
    read = {path: module for path, module in targets.items() if first and not isinstance(module, nn.Embedding)}
    if config.quantize is not None:
        read |= _dense_layers(model, config)
    for path, module in read.items():
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            continue
        setting = f"quantize={config.quantize!r}" if config.quantize is not None else f"init={config.init!r}"
        if weight.is_meta:
            raise ValueError(f"model: {path!r} has no weight yet (device meta), which {setting} reads: load it first")
        if not weight.isfinite().all():
            raise ValueError(f"model: the weight of {path!r} has NaN or inf, expected finite values for {setting}")


def _putting_back(base: nn.Module) -> Callable[[], object]:
    """What gives a base the weight back that it has now."""
    weight: Any = getattr(base, "weight", None)
    # one that is formed in each forward isn't changed
    own = isinstance(base, NF4Linear) or "weight" in base._parameters
    return lambda: setattr(base, "weight", weight) if own else None


def check_model(model: object) -> None:
    """Raises TypeError for anything but a module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")


def expected_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """`adapter_layers`; raises ValueError for a model without any, TypeError for no model."""
    check_model(model)
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("model: expected one with adapters, it has none")
    return layers


def _saved(model: nn.Module, config: AdapterConfig) -> list[str]:
    return find_saved(model, config.modules_to_save, config.target_modules)


def _dense_layers(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Module]:
    """What is quantised: linear layers but the output head, what is trained whole, and what must stay dense."""
    stays = _stays_dense(model, config)
    return {path: module for path, module in _could_be_quantised(model, config).items() if path not in stays}


def _stays_dense(model: nn.Module, config: AdapterConfig) -> dict[str, str]:
    """Path → why, of what would be quantised: another module has its weight, which would stay as it is there, or
    divides it in place.
    """
    shared, reasons = shared_modules(model), {}
    for path, module in _could_be_quantised(model, config).items():
        if module in shared:
            reasons[path] = "other modules have the same weight"
        elif rescaler := rescaler_of(model, path)[0]:
            reasons[path] = f"{rescaler} divides the weights in place"
    return reasons


def _could_be_quantised(model: nn.Module, config: AdapterConfig) -> dict[str, nn.Module]:
    head, saved = output_head(model), _saved(model, config)
    return {
        path: module
        for path, module in model.named_modules()
        if path and (type(module) is nn.Linear or is_conv1d(module)) and module is not head and not inside(path, saved)
    }


def _tell_of_dense(model: nn.Module, config: AdapterConfig) -> None:
    stays = _stays_dense(model, config) if config.quantize is not None else {}
    for why in dict.fromkeys(stays.values()):
        left = [path for path in stays if stays[path] == why]
        told = f"{left[0]!r} stays" if len(left) == 1 else f"{', '.join(map(repr, left[:3]))} ({len(left)}) stay"
        warnings.warn(f"quantize={config.quantize!r}: {told} dense, since {why}", stacklevel=4)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """Path → adapter layer, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AdapterLayer)}


def _quantisation(config: AdapterConfig) -> dict[str, Any]:
    return {
        "block_size": config.block_size,
        "double_quant": config.double_quant,
        "quant_type": config.quantize or "nf4",
    }


def _loftq_layer(
    base: nn.Module, config: AdapterConfig, rank: int, alpha: float, name: str, own: Mapping[str, Any]
) -> AdapterLayer:
    """A layer whose 4-bit weight and factors were chosen together."""
    layer = new_adapter_layer(base, replace(config, init="default"), rank, alpha, name, own)
    active, settings = layer.active, _quantisation(config)
    dense = dense_base_weight(base)
    weight, start = loftq(dense, active.rank, active.scaling, lambda part: quantize_nf4(part, **settings))
    layer.base_layer = NF4Linear(weight, layer.base_bias(), base).train(base.training)
    active.start_from(*start)
    return layer


def new_adapter_layer(
    base: nn.Module, config: AdapterConfig, rank: int, alpha: float, name: str, own: Mapping[str, Any]
) -> AdapterLayer:
    """The adapter layer that `config` means around `base`, with the rank and alpha that its patterns give. An embedding
    keeps its table whole, as in PEFT.
    """
    settings = AdapterSettings.of(config, rank, alpha)
    if isinstance(base, nn.Embedding) and starts_from_weight(config.init):
        settings = settings._replace(init="default")
    return layer_class(config.method, base)(base, **settings._asdict(), adapter=name, **own)
