"""Several adapters of a model: added, switched, disabled, and mixed in one batch. Each may be on other modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import METHODS, AdapterLayer, LoraParameter, NF4Linear
from ..methods.adapter import AdapterSettings
from ..methods.base_weight import is_bitsandbytes_4bit
from ..methods.registry import layer_class
from .adapt import (
    adapter_layers,
    check_targets,
    expected_layers,
    new_adapter_layers,
    own_bases,
    replace_module,
    run_through_layers,
)
from .parameter_targets import find_parameters, parameter_paths, put_parameters
from .saved_module import SavedModule, find_saved, saved_modules
from .targets import find_targets, pattern_values, tell_unmatched
from .tensor_keys import unwrapped
from .token_rows import TokenRows, find_token_rows, put_token_rows, token_rows
from .unchanged import unchanged_on_failure


def add_adapter(model: nn.Module, name: str, config: AdapterConfig | None = None) -> None:
    """Adds a further adapter; `set_adapter` makes it the active one.

    `config`: as for `adapt`; its `target_modules` may be others than those of the adapters that are there, None means
    the modules of the active one. `config` None: that which the model was adapted with. Raises ValueError, before
    anything is changed, for a name that is there already, another method on a module that has an adapter (LoRA and DoRA
    go together), what changes the base that adapters share, or a model without adapters.
    """
    model = unwrapped(model)
    layers = expected_layers(model)
    check_new_name(model, name)
    again = config is None
    config = config or getattr(model, "lorafam_config", None)
    if not isinstance(config, AdapterConfig):
        raise ValueError("config: expected one, the model doesn't know what it was adapted with")
    _check_shares_base(model, config, again)
    active = {
        path: layer.base_layer
        for path, layer in layers.items()
        if layer.has_active and not isinstance(layer, LoraParameter)
    }
    wanted = active if again or config.target_modules is None else find_targets(model, config)
    parameters = find_parameters(model, config.target_parameters)
    tell_unmatched(config, [*wanted, *parameter_paths(parameters)])
    put_adapter(model, name, config, wanted, _saved_for(model, config, again), find_token_rows(model, config))


def put_adapter(
    model: nn.Module,
    name: str,
    config: AdapterConfig,
    wanted: Mapping[str, nn.Module],
    saved: Sequence[str],
    rows: Mapping[str, list[int]],
) -> None:
    """Adds an adapter, not active, on the modules `wanted`, with copies of those `saved` and with token `rows`."""
    layers = expected_layers(model)
    there = {path: layer for path, layer in layers.items() if path in wanted}
    new = {path: module for path, module in wanted.items() if path not in layers}
    kinds = {path: _kind_beside(path, layer, config) for path, layer in there.items()}
    check_targets(model, new, config)
    parameters = find_parameters(model, config.target_parameters)
    active = next(iter(layers.values())).active_adapter
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    ranks = pattern_values(config.rank_pattern, list(wanted), config.r, "rank_pattern")
    alphas = pattern_values(config.alpha_pattern, list(wanted), config.alpha, "alpha_pattern")
    own = METHODS[config.method].layer_settings(config, wanted.values())
    with unchanged_on_failure(model) as undo:
        for path, layer in there.items():
            undo.append(_forgetting(layer.adapters, name))
            layer.put_adapter(name, AdapterSettings.of(config, int(ranks[path]), alphas[path]), own, kinds[path])
        for path, made in new_adapter_layers(own_bases(model, new), config, undo, name, own).items():
            made.set_adapter(active, elsewhere=True)
            replace_module(model, path, made)
        for layer in layers.values():
            if isinstance(layer, LoraParameter):
                undo.append(_forgetting(layer.adapters, name))
        put_parameters(model, parameters, config, name, active)
        for path in saved:
            module = model.get_submodule(path)
            if isinstance(module, SavedModule):
                undo.append(_forgetting(module.copies, name))
                module.add_adapter(name)
            else:
                module = SavedModule(module, name)
                module.set_adapter(active)
                replace_module(model, path, module)
        put_token_rows(model, rows, name, active)
        # trained biases of the base
        for parameter in trained:
            parameter.requires_grad_(True)
    run_through_layers(model)


def _kind_beside(path: str, layer: AdapterLayer, config: AdapterConfig) -> type[AdapterLayer]:
    """The class of a layer with an adapter of another method: LoRA and DoRA go together, as in PEFT. Raises ValueError
    for others, and for what an adapter of the layer's weight as a parameter can't be.
    """
    of_parameter, method = isinstance(layer, LoraParameter), config.method
    if METHODS[method].peft_type != layer.peft_type or (of_parameter and method != layer.method):
        raise ValueError(f"config: expected the method {layer.method!r} of {path!r}, got {method!r}")
    if of_parameter and (config.dropout or config.bias):
        told = f"{path!r} has an adapter of its parameter {layer.parameter!r}"
        raise ValueError(f"target_modules: {told}, expected one with dropout 0 and no bias beside it")
    # of its weight, which is the same sum
    return LoraParameter if of_parameter else layer_class(method, layer.base_layer)


def _forgetting(adapters: nn.ModuleDict, name: str) -> Callable[[], object]:
    return lambda: adapters.pop(name) if name in adapters else None


def _check_shares_base(model: nn.Module, config: AdapterConfig, again: bool) -> None:
    """A further adapter leaves the base as it is."""
    four_bits = any(isinstance(module, NF4Linear) or is_bitsandbytes_4bit(module) for module in model.modules())
    if config.quantize is not None and not four_bits:
        raise ValueError(f"quantize: expected None for a further adapter, the base is dense; got {config.quantize!r}")
    if config.base_bias != "none" and not again:
        raise ValueError(
            f"base_bias: expected 'none' for a further adapter, biases are shared; got {config.base_bias!r}"
        )
    if starts_from_weight(config.init):
        raise ValueError(f"init: {config.init!r} changes the base's weight, expected the layer's only adapter")


def _saved_for(model: nn.Module, config: AdapterConfig, again: bool) -> list[str]:
    """The paths of the modules that a further adapter has a copy of: by default those that have copies."""
    if again or config.modules_to_save is None:
        return list(saved_modules(model))
    return find_saved(model, config.modules_to_save, config.target_modules)


def modules_beside(model: nn.Module) -> dict[str, SavedModule | TokenRows]:
    """Path → module that holds something of an adapter's beside its layers."""
    return {**saved_modules(model), **token_rows(model)}


def set_adapter(model: nn.Module, name: str) -> None:
    """Makes an adapter the active one; modules that it isn't on are their bases then. Raises KeyError where no layer
    has it, RuntimeError where one is merged.
    """
    layers = expected_layers(model)
    check_name(layers, name)
    merged = next((path for path, layer in layers.items() if layer.merged), None)
    if merged is not None:
        raise RuntimeError(f"set_adapter: {merged!r} is merged, unmerge it first")
    for layer in layers.values():
        layer.set_adapter(name, elsewhere=True)
    for module in modules_beside(model).values():
        module.set_adapter(name)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Removes an adapter, and layers that have no other. Raises KeyError where no layer has it, ValueError where it is
    the active one.
    """
    layers = expected_layers(model)
    check_name(layers, name)
    for path, layer in layers.items():
        if layer.active_adapter == name:
            raise ValueError(f"name: {name!r} is the active adapter of {path!r}; set another one first")
    # of layers around each other the innermost first
    for path, layer in reversed(layers.items()):
        if name in layer.adapters:
            del layer.adapters[name]
        if not layer.adapters:
            replace_module(model, path, layer.base_layer)
    for path, module in modules_beside(model).items():
        module.forget(name)
        if isinstance(module, SavedModule) and not module.copies:
            replace_module(model, path, module.base_layer)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every layer is its base, also a merged one: merged again afterwards."""
    layers: list[Any] = [*expected_layers(model).values(), *modules_beside(model).values()]
    before = [layer.enabled for layer in layers]
    try:
        for layer in layers:
            layer.enabled = False
        yield model
    finally:
        for layer, enabled in zip(layers, before, strict=True):
            layer.enabled = enabled


@contextmanager
def adapters_by_row(model: nn.Module, names: Sequence[str | None]) -> Iterator[nn.Module]:
    """Inside, row i of every batch goes through the adapter `names[i]`, or through the base alone (None), as it does
    where a module has none of that name; merged layers too. LoRA and rsLoRA, of embeddings too, with modules trained
    whole and rows of tokens; all rows in one product, where no adapter drops or has a bias. A batch with each row
    repeated (beams, several sequences a prompt) repeats the names.

    Raises KeyError for an unknown name, ValueError for another method, no name at all, or later another number of rows.
    """
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise ValueError(f"names: expected one for each row, got {names if names else 'none'}")
    layers = expected_layers(model)
    for name in names:
        if name is not None:
            check_name(layers, name, "names")
    for path, layer in layers.items():
        adapters: list[Any] = [layer.adapters[name] for name in names if name and name in layer.adapters]
        other = next((one.kind for one in adapters if not one.kind.adds_up), None)
        if other is not None:
            raise ValueError(f"model: expected LoRA layers, {path!r} is a {other.__name__}")
    beside = modules_beside(model).values()
    before: dict[Any, Any] = {one: one.row_adapters for one in (*layers.values(), *beside)}
    try:
        for layer in layers.values():
            layer.row_adapters = tuple(name if name and name in layer.adapters else None for name in names)
        for module in beside:
            module.row_adapters = tuple(name if name and module.has(name) else None for name in names)
        yield model
    finally:
        for layer, rows in before.items():
            layer.row_adapters = rows


def check_name(layers: Mapping[str, AdapterLayer], name: str, argument: str = "name") -> None:
    """Raises KeyError, beginning with the `argument`, where no layer has an adapter of that name."""
    known = dict.fromkeys(one for layer in layers.values() for one in layer.adapters)
    if not isinstance(name, str) or name not in known:
        raise KeyError(f"{argument}: expected one of {list(known)}, got {name!r}")


def check_new_name(model: nn.Module, name: object, argument: str = "name") -> None:
    """Raises ValueError for a name that nn.ModuleDict can't hold or that an adapter has."""
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
        told = f"expected a text without dots that isn't a method of nn.ModuleDict, got {name!r}"
        raise ValueError(f"{argument}: {told}")
    for path, layer in adapter_layers(model).items():
        if name in layer.adapters:
            raise ValueError(f"name: expected a new one, {path!r} has an adapter {name!r} already")
