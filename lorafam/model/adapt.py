"""`adapt`: puts adapter layers on a model, in place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import METHODS, AdapterLayer, LoraEmbedding, NF4Linear
from ..methods.base_weight import dense_base_weight
from ..methods.conv1d import is_conv1d
from ..methods.frozen_linear import freeze_layer, frozen_layers, thaw_layers
from ..methods.initialisers import loftq
from ..weights import quantize_nf4
from .targets import find_targets, output_head, pattern_value
from .weight_readers import stop_fast_paths


def adapt(model: nn.Module, config: AdapterConfig) -> nn.Module:
    """Freezes `model`, quantises its linear layers where the config says so, and wraps its target modules.

    Returns the same model, its adapters trainable and everything else frozen. Raises ValueError for a model that has
    adapters already or a target that isn't there, before anything is changed.
    """
    if any(isinstance(module, AdapterLayer) for module in model.modules()):
        raise ValueError("model: expected one without adapters, it has some already")
    paths = list(find_targets(model, config.target_modules))
    # what is taken from a weight is taken before it is quantised
    first = starts_from_weight(config.init)
    for path in paths:
        plain = config.method == "lora" and not config.bias and not first
        if isinstance(model.get_submodule(path), nn.Embedding) and not plain:
            raise ValueError(
                f"target_modules: {path!r} is an embedding: expected method 'lora', no bias, init 'default'"
            )
    model.requires_grad_(False)
    if config.quantize is not None and not first:
        quantize_linear_layers(model, config)
    for path in paths:
        make = _loftq_layer if config.init == "loftq" else new_adapter_layer
        replace_module(model, path, make(model.get_submodule(path), path, config))
    if config.quantize is not None and first:
        quantize_linear_layers(model, config)
    for _, layer in frozen_layers(model, (AdapterLayer,)):
        freeze_layer(layer)
    stop_fast_paths(model)
    model.lorafam_config = config  # type: ignore[assignment]
    return model


def expected_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """`adapter_layers`; raises ValueError for a model without any."""
    layers = adapter_layers(model)
    if not layers:
        raise ValueError("model: expected one with adapters, it has none")
    return layers


def quantize_linear_layers(model: nn.Module, config: AdapterConfig) -> None:
    """Turns every nn.Linear and Conv1D but the output head into an `NF4Linear`, one at a time."""
    head = output_head(model)
    dense = [
        path
        for path, module in model.named_modules()
        if (type(module) is nn.Linear or is_conv1d(module)) and module is not head
    ]
    for path in dense:
        layer = model.get_submodule(path)
        quantised = NF4Linear.from_linear(layer, **_quantisation(config))
        replace_module(model, path, quantised)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def remove_adapters(model: nn.Module) -> None:
    """Puts every adapter layer's base back in its place."""
    thaw_layers(model)
    for path, layer in adapter_layers(model).items():
        replace_module(model, path, layer.base_layer)
    if hasattr(model, "lorafam_config"):
        del model.lorafam_config


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """Path → adapter layer, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AdapterLayer)}


def _quantisation(config: AdapterConfig) -> dict[str, Any]:
    return {
        "block_size": config.block_size,
        "double_quant": config.double_quant,
        "quant_type": config.quantize or "nf4",
    }


def _loftq_layer(base: nn.Module, path: str, config: AdapterConfig) -> AdapterLayer:
    """A layer whose 4-bit weight and factors were chosen together."""
    if type(base) is not nn.Linear and not is_conv1d(base):
        raise ValueError(f"init: 'loftq' needs the weight before it is quantised, {path!r} is a {type(base).__name__}")
    layer = new_adapter_layer(base, path, replace(config, init="default"))
    active, settings = layer.active, _quantisation(config)
    dense = dense_base_weight(base)
    weight, start = loftq(dense, active.rank, active.scaling, lambda part: quantize_nf4(part, **settings))
    layer.base_layer = NF4Linear(weight, layer.base_bias()).train(base.training)
    active.start_from(*start)
    return layer


def new_adapter_layer(base: nn.Module, path: str, config: AdapterConfig) -> AdapterLayer:
    """The adapter layer that `config` means for the module at `path`."""
    kind: type[AdapterLayer] = LoraEmbedding if isinstance(base, nn.Embedding) else METHODS[config.method]
    own: dict[str, Any] = {}
    if config.method == "dora":
        own = {"dora_dropout": config.dora_dropout, "norm_gradient": config.dora_norm_gradient}
    return kind(
        base,
        r=int(pattern_value(config.rank_pattern, path, config.r)),
        alpha=pattern_value(config.alpha_pattern, path, config.alpha),
        dropout=config.dropout,
        rslora=config.rslora,
        init=config.init,
        bias=config.bias,
        **own,
    )
