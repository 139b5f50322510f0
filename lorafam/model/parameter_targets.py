"""Parameters that get an adapter though they are no layer's weight (PEFT's target_parameters), and their layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..config import AdapterConfig
from ..methods import AdapterLayer, LoraParameter
from ..methods.adapter import AdapterSettings
from ..methods.lora_parameter import holder_of
from .saved_module import outer_modules
from .targets import pattern_values
from .tensor_keys import clean_path
from .unchanged import at_several_places, for_one_place

# module's path → its parameters, in its own order: the first one's layer is the innermost, as in PEFT
Parameters = dict[str, list[str]]


def find_parameters(model: nn.Module, names: Sequence[str] | None) -> Parameters:
    """Those whose whole names end in one of `names`. Raises ValueError for a name that no parameter has."""
    targets: Parameters = {}
    known = set()
    for path, module in outer_modules(model).items():
        holder = holder_of(module)
        for parameter, _ in holder.named_parameters(recurse=False):
            whole = f"{clean_path(path)}.{parameter}"
            hits = {name for name in names or () if whole == name or whole.endswith(f".{name}")}
            if not hits:
                continue
            if not path:
                raise ValueError(f"target_parameters: {parameter!r} can't be adapted, its module is the whole model")
            known |= hits
            targets.setdefault(path, []).append(parameter)
    missing = [name for name in names or () if name not in known]
    if missing:
        for path, layer in model.named_modules():
            own, _, parameter = missing[0].rpartition(".")
            if isinstance(layer, AdapterLayer) and parameter == "weight" and f".{path}".endswith(f".{own}"):
                raise ValueError(f"target_parameters: {missing[0]!r} is the weight of an adapted layer, {path!r}")
        raise ValueError(f"target_parameters: no parameter is called {missing[0]!r}")
    return targets


def nested_paths(path: str, parameters: Sequence[str]) -> dict[str, str]:
    """Path of a layer → its parameter, the outermost at the module's own path."""
    return {path + ".base_layer" * depth: name for depth, name in enumerate(reversed(parameters))}


def parameter_paths(wanted: Parameters) -> list[str]:
    """What patterns of ranks and alphas are matched with."""
    return [f"{clean_path(path)}.{parameter}" for path, parameters in wanted.items() for parameter in parameters]


def pattern_path(path: str, layer: nn.Module) -> str:
    """That of a layer."""
    if not isinstance(layer, LoraParameter):
        return path
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
    return f"{path}.{layer.parameter}"


def put_parameters(model: nn.Module, wanted: Parameters, config: AdapterConfig, name: str, active: str) -> None:
    """Gives parameters an adapter; `active` is the model's active one. Raises ValueError where a module has adapters of
    other parameters of its own.
    """
    for path, layer in _made(model, wanted, config, name).items():
        for one in _chain(layer):
            one.set_adapter(active, elsewhere=True)
        parent, _, own = path.rpartition(".")
        setattr(model.get_submodule(parent), own, layer)


def meta_parameters(model: nn.Module, wanted: Parameters, config: AdapterConfig) -> dict[str, AdapterLayer]:
    """The layers that `put_parameters` puts around parameters, by their paths, without memory."""
    with torch.device("meta"):
        stubs = {path: _stub(holder_of(model.get_submodule(path)), names) for path, names in wanted.items()}
        holders = nn.Module()
        layers = _made(holders, wanted, config, "default", stubs)
    found: dict[str, AdapterLayer] = {}
    for path, layer in layers.items():
        found |= dict(zip(nested_paths(clean_path(path), wanted[path]), _chain(layer), strict=True))
    return found


def _made(
    model: nn.Module, wanted: Parameters, config: AdapterConfig, name: str, stubs: Mapping[str, nn.Module] | None = None
) -> dict[str, LoraParameter]:
    """Module's path → the outermost layer."""
    paths = parameter_paths(wanted)
    ranks = pattern_values(config.rank_pattern, paths, config.r, None)
    alphas = pattern_values(config.alpha_pattern, paths, config.alpha, None)
    made = {}
    # merged, a parameter changes at its own place alone
    several = at_several_places(model) if stubs is None else []
    for path, parameters in wanted.items():
        layer: Any = model.get_submodule(path) if stubs is None else stubs[path]
        if layer in several:
            layer = for_one_place(layer)
        if isinstance(holder_of(layer), AdapterLayer):
            raise ValueError(f"target_parameters: {path!r} can't be adapted, its layer is already")
        there = [one.parameter for one in reversed(_chain(layer))]
        if there and there != parameters:
            told = f"{path!r} has adapters of {there}, expected the same of a further one, got {parameters}"
            raise ValueError(f"target_parameters: {told}")
        for index, parameter in enumerate(parameters):
            whole = f"{clean_path(path)}.{parameter}"
            settings = AdapterSettings.of(config, int(ranks[whole]), alphas[whole])
            if there:
                list(reversed(_chain(layer)))[index].put_adapter(name, settings, {})
            else:
                layer = LoraParameter(layer, parameter, adapter=name, **settings._asdict())
        made[path] = layer
    return made


def _chain(layer: Any) -> list[LoraParameter]:
    """Layers around each other, the outermost first."""
    found = []
    while isinstance(layer, LoraParameter):
        found.append(layer)
        layer = layer.base_layer
    return found


def _stub(holder: nn.Module, names: Sequence[str]) -> nn.Module:
    stub: Any = nn.Module()
    stub.is_transposed = bool(getattr(holder, "is_transposed", False))
    for name in names:
        weight: Any = holder.get_parameter(name)
        stub.register_parameter(name, nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=False))
    return stub
