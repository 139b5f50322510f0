"""Merging a whole model: adapters folded into their bases, and the bare bases put back in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..compat.transformers import forget_quantisation, forget_tying
from ..config import check_choice, check_flag
from ..methods import AdapterLayer, LoraParameter, NF4Linear
from ..methods.base_weight import is_bitsandbytes_4bit
from ..methods.conv1d import is_conv1d
from ..methods.frozen_linear import thaw_layers
from ..methods.gated_mlp import ungate_mlps
from ..methods.merge_report import THRESHOLD, MergeReport, check_threshold
from ..methods.stored_weight import DENSE, FORMATS, with_weight
from .adapt import adapter_layers, expected_layers, replace_module
from .adapters import modules_beside
from .base_tensors import base_parameters, remember_base_tensors
from .model_merge_report import ModelMergeReport
from .pretrained import answer_no_more
from .saved_module import SavedModule, active_copies, saved_modules
from .tensor_keys import bare_key, clean_path, unwrapped
from .token_rows import unload_token_rows
from .unchanged import all_tied_to

Tensor = torch.Tensor

ADVISED = "advised"


def merge_and_unload(
    model: nn.Module,
    safe: bool = True,
    *,
    into: str = "same",
    keep_unmerged: str | Sequence[str] = (),
    probe: Mapping[str, Tensor] | None = None,
    threshold: float = THRESHOLD,
) -> ModelMergeReport:
    """Merges adapters and removes their layers: dense layers are plain nn.Linear again. Says what it cost, by path.

    `into` as in a layer's `merge`; a dense format is also that of the model's other parameters then, and of `NF4Linear`
    layers without an adapter, which nobody else could load. `keep_unmerged` leaves layers as adapters: names that end
    their paths, or "advised" for those whose report advises it. `probe` has inputs [.., K] by path, as `probe_inputs`
    collects them; standard-normal ones where it has none.

    A head or a table that is tied to the other gets a weight of its own, and the model's configuration says so. Where
    layers are left, adapters that weren't active are gone, and the adapter's file has what was merged, whole.
    Raises ValueError for a model without adapters, for a name no adapter layer has, for a weight that is tied to
    several others and, with `safe`, for a result that isn't finite; TypeError for a base whose weight can't be
    replaced. The model is then as it was. Until it returns, it holds what it replaces.
    """
    model = unwrapped(model)
    every = expected_layers(model)
    # a layer without the active adapter is its base
    layers = {path: layer for path, layer in every.items() if layer.has_active}
    if not layers:
        raise ValueError("model: expected one whose active adapter is on some layer, it is on none")
    check_choice("into", into, FORMATS)
    check_flag("safe", safe)
    check_threshold(threshold)
    if not isinstance(keep_unmerged, Sequence | set | frozenset):
        raise ValueError(f"keep_unmerged: expected names, or {ADVISED!r}, got {keep_unmerged!r}")
    if probe is not None and not isinstance(probe, Mapping):
        raise ValueError(f"probe: expected inputs by path, got a {type(probe).__name__}")
    kept = _named(layers, [] if keep_unmerged == ADVISED else keep_unmerged)
    unknown = sorted((probe or {}).keys() - layers.keys())
    if unknown:
        raise ValueError(f"probe: expected paths of adapter layers, got {unknown[0]!r}")
    parted = _parts_saved(model)
    tied: dict[str, Tensor] = {}
    reports: dict[str, MergeReport] = {}
    # those that are merged are merged anew, as `into` says
    before = {path: layer.taken_apart() for path, layer in layers.items() if layer.merged}
    try:
        _check_tied(model, [path for path in layers if path not in kept])
        _check_biases(model, {path: layer for path, layer in layers.items() if path not in kept})
        for path, layer in layers.items():
            _untie(model, path, tied)
            try:
                # a table has the model's dtype, and no 4 bits
                stored = "same" if isinstance(layer.base_layer, nn.Embedding) else into
                reports[path] = layer.merge(
                    safe, into=stored, probe=None if probe is None else probe.get(path), threshold=threshold
                )
            except (RuntimeError, TypeError, ValueError) as error:
                raise type(error)(f"{path}: {error}") from error
            if path in kept or (keep_unmerged == ADVISED and reports[path].unmerged_is_better):
                kept.add(path)
                layer.unmerge()
                _tie_again(model, path, tied)
    except BaseException:
        for layer in layers.values():
            if layer.merged:
                layer.unmerge()
        for path in list(tied):
            _tie_again(model, path, tied)
        for path, folded in before.items():
            layers[path].put_together(folded)
        raise
    if kept:
        _remember(model, [path for path in layers if path not in kept], tied)
        _forget_others(model, [every[path] for path in kept])
    # of layers around each other the innermost first
    for path, layer in reversed(every.items()):
        if path not in kept:
            replace_module(model, path, layer.unloaded())
    if into in DENSE:
        _decode_rest(model, DENSE[into])
    if not kept:
        for path, module in list(active_copies(model)):
            replace_module(model, path, module)
        unload_token_rows(model)
        thaw_layers(model)
        ungate_mlps(model)
        answer_no_more(model)
    rest = any(is_bitsandbytes_4bit(module) for module in model.modules())
    dense = [path for path, module in model.named_modules() if type(module) is nn.Linear or is_conv1d(module)]
    if tied or (parted and not kept):
        forget_tying(model)
    forget_quantisation(model, dense, rest=rest)
    if into in DENSE:
        _convert_rest(model, DENSE[into])
    if not kept:
        for name in ("lorafam_config", "lorafam_base_tensors", "lorafam_resized_tensors", "lorafam_first_biases"):
            model.__dict__.pop(name, None)
    return ModelMergeReport(reports, [path for path in layers if path in kept])


def _remember(model: nn.Module, paths: Sequence[str], tied: Mapping[str, Tensor]) -> None:
    """Has the file of an adapter that is left hold the merged weights, and what they are no more tied to."""
    names: list[str] = []
    for path in paths:
        layer: Any = model.get_submodule(path)
        own = bare_key(clean_path(path))
        names.append(f"{own}.{layer.parameter}" if isinstance(layer, LoraParameter) else f"{own}.weight")
        if getattr(layer.active, "bias", None) is not None:
            names.append(f"{own}.bias")
    for name, (_, parameter) in base_parameters(model).items():
        if any(parameter is weight for weight in tied.values()):
            names.append(name)
    remember_base_tensors(model, names)


def _forget_others(model: nn.Module, kept: Sequence[AdapterLayer]) -> None:
    """Drops adapters that aren't active: they were for another base, and what of them was on merged layers is gone."""
    for layer in kept:
        for name in [name for name in layer.adapters if name != layer.active_adapter]:
            del layer.adapters[name]
    for module in modules_beside(model).values():
        others = module.copies if isinstance(module, SavedModule) else module.tokens
        for name in [name for name in others if name != module.active_adapter]:
            module.forget(name)


def _named(layers: Mapping[str, AdapterLayer], names: str | Sequence[str]) -> set[str]:
    paths: set[str] = set()
    for name in [names] if isinstance(names, str) else names:
        hits = {path for path in layers if path == name or path.endswith(f".{name}")}
        if not hits:
            known = sorted({path.rsplit(".", 1)[-1] for path in layers})
            raise ValueError(f"keep_unmerged: no adapter layer is called {name!r}; there are {', '.join(known[:8])}")
        paths |= hits
    return paths


def _check_tied(model: nn.Module, paths: Sequence[str]) -> None:
    """Of two that share a weight, an output head and the embeddings, one gets its own; of more none is parted."""
    for path in paths:
        others = all_tied_to(model, model.get_submodule(path).base_layer)  # type: ignore[arg-type]
        if len(others) > 1:
            raise ValueError(
                f"{path}: its weight is tied to {' and '.join(others)}, which merging would change; untie it first"
            )


def _parts_saved(model: nn.Module) -> bool:
    """Whether a module that an adapter has whole shares a weight with one that it doesn't have. Raises ValueError where
    it does with several.
    """
    parted = False
    for path, module in saved_modules(model).items():
        parts = module.base_layer.modules() if module.has(module.active_adapter) else ()
        others = [name for part in parts for name in all_tied_to(model, part) if not name.startswith(f"{path}.")]
        if len(others) > 1:
            raise ValueError(
                f"{path}: its weight is tied to {' and '.join(others)}, which saving the merged model would tie again"
            )
        parted = parted or bool(others)
    return parted


def _untie(model: nn.Module, path: str, tied: dict[str, Tensor]) -> None:
    """Gives a base that shares its weight one of its own; `tied` gets what it was."""
    base: Any = model.get_submodule(path).base_layer
    if all_tied_to(model, base):
        tied[path] = base.weight
        base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)


def _tie_again(model: nn.Module, path: str, tied: dict[str, Tensor]) -> None:
    if path in tied:
        model.get_submodule(path).base_layer.weight = tied.pop(path)  # type: ignore[union-attr]


def _check_biases(model: nn.Module, layers: Mapping[str, AdapterLayer]) -> None:
    """A model of transformers makes its layers by its configuration, and drops a bias that they don't have."""
    if not hasattr(model, "save_pretrained"):
        return
    for path, layer in layers.items():
        if layer.base_bias() is None and getattr(layer.active, "bias", None) is not None:
            raise ValueError(
                f"{path}: its adapter has a bias (lora_bias) and the layer none: the merged model would lose it when "
                "saved; leave it with keep_unmerged"
            )


def _decode_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """4-bit layers of lorafam's that are no adapter's base become dense ones."""
    bases = {id(layer.base_layer) for layer in adapter_layers(model).values()}
    for path, module in list(model.named_modules()):
        if isinstance(module, NF4Linear) and id(module) not in bases:
            bias = None if module.bias is None else module.bias.to(dtype)
            replace_module(model, path, with_weight(module, module.weight.dequantize(dtype), bias))


def _convert_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """Parameters that belong to no adapter, in place; 4-bit codes and buffers (rotary frequencies) stay as they are."""
    adapters = {id(p) for layer in adapter_layers(model).values() for p in layer.adapters.parameters()}
    for parameter in model.parameters():
        if parameter.is_floating_point() and id(parameter) not in adapters:
            parameter.data = parameter.data.to(dtype)
