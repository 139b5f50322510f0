"""`adapt`: puts adapter layers on a model, in place."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config import AdapterConfig
from ..methods import METHODS, AdapterLayer, NF4Linear
from .targets import find_targets, output_head, pattern_value


def adapt(model: nn.Module, config: AdapterConfig) -> nn.Module:
    """Freezes `model`, quantises its linear layers where the config says so, and wraps its target modules.

    Returns the same model, its adapters trainable and everything else frozen. Raises ValueError for a model that has
    adapters already or a target that isn't there, before anything is changed.
    """
    if any(isinstance(module, AdapterLayer) for module in model.modules()):
        raise ValueError("model: expected one without adapters, it has some already")
    paths = list(find_targets(model, config.target_modules))
    model.requires_grad_(False)
    if config.quantize is not None:
        quantize_linear_layers(model, config)
    for path in paths:
        replace_module(model, path, new_adapter_layer(model.get_submodule(path), path, config))
    model.lorafam_config = config  # type: ignore[assignment]
    return model


def quantize_linear_layers(model: nn.Module, config: AdapterConfig) -> None:
    """Turns every nn.Linear but the output head into an `NF4Linear`, one at a time."""
    head = output_head(model)
    dense = [path for path, module in model.named_modules() if type(module) is nn.Linear and module is not head]
    for path in dense:
        layer = model.get_submodule(path)
        quantised = NF4Linear.from_linear(
            layer,  # type: ignore[arg-type]
            config.block_size,
            config.double_quant,
            quant_type=config.quantize or "nf4",
        )
        replace_module(model, path, quantised)


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` at a dotted path."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def remove_adapters(model: nn.Module) -> None:
    """Puts every adapter layer's base back in its place."""
    for path, layer in adapter_layers(model).items():
        replace_module(model, path, layer.base_layer)
    if hasattr(model, "lorafam_config"):
        del model.lorafam_config


def adapter_layers(model: nn.Module) -> dict[str, AdapterLayer]:
    """Path → adapter layer, in the model's order."""
    return {path: module for path, module in model.named_modules() if isinstance(module, AdapterLayer)}


def new_adapter_layer(base: nn.Module, path: str, config: AdapterConfig) -> AdapterLayer:
    """The adapter layer that `config` means for the module at `path`."""
    own: dict[str, Any] = {"dora_dropout": config.dora_dropout} if config.method == "dora" else {}
    return METHODS[config.method](
        base,
        r=int(pattern_value(config.rank_pattern, path, config.r)),
        alpha=pattern_value(config.alpha_pattern, path, config.alpha),
        dropout=config.dropout,
        rslora=config.rslora,
        init=config.init,
        bias=config.bias,
        **own,
    )
