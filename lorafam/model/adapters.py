"""Several adapters of a model: added, switched, disabled, combined, and mixed in one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..config import AdapterConfig, check_choice, check_rank
from ..methods import AdapterLayer, LoraEmbedding, LoraLinear
from ..methods.adapter import Adapter
from .adapt import expected_layers
from .saved_module import SavedModule, saved_modules
from .targets import pattern_values
from .tensor_keys import clean_path

COMBINATIONS = ("linear", "cat", "svd")


def add_adapter(model: nn.Module, name: str, config: AdapterConfig | None = None) -> None:
    """Adds a further adapter to every adapter layer of `model`; `set_adapter` makes it the active one.

    `config`: its rank, alpha, dropout, init and patterns; None: those the model was adapted with. Raises ValueError,
    before anything is changed, for a name that is there already, another method or a model without adapters.
    """
    layers = expected_layers(model)
    # what names a module, which nn.ModuleDict holds
    if not isinstance(name, str) or not name or "." in name or hasattr(nn.ModuleDict, name):
        raise ValueError(f"name: expected a text without dots that isn't a method of nn.ModuleDict, got {name!r}")
    config = config or getattr(model, "lorafam_config", None)
    if not isinstance(config, AdapterConfig):
        raise ValueError("config: expected one, the model doesn't know what it was adapted with")
    for path, layer in layers.items():
        if layer.method != config.method:
            raise ValueError(f"config: expected the method {layer.method!r} of {path!r}, got {config.method!r}")
        if name in layer.adapters:
            raise ValueError(f"name: expected a new one, {path!r} has an adapter {name!r} already")
    saved = _saved_for(model, config)
    ranks = pattern_values(config.rank_pattern, list(layers), config.r, "rank_pattern")
    alphas = pattern_values(config.alpha_pattern, list(layers), config.alpha, "alpha_pattern")
    try:
        for path, layer in layers.items():
            layer.add_adapter(
                name, int(ranks[path]), alphas[path], config.dropout, config.rslora, config.init, config.bias
            )
    except BaseException:
        for layer in layers.values():
            if name in layer.adapters:
                del layer.adapters[name]
        raise
    for module in saved.values():
        module.add_adapter(name)


def _saved_for(model: nn.Module, config: AdapterConfig) -> dict[str, SavedModule]:
    """The modules that a further adapter has a copy of: those that the first one has too."""
    known = saved_modules(model)
    if config.modules_to_save is None:
        return known
    found: dict[str, SavedModule] = {}
    for name in config.modules_to_save:
        hits = {path: module for path, module in known.items() if clean_path(path).endswith(name)}
        if not hits:
            raise ValueError(f"modules_to_save: {name!r} is none of those that the model has, {list(known)}")
        found |= hits
    return found


def set_adapter(model: nn.Module, name: str) -> None:
    """Makes an adapter the active one in every layer. Raises KeyError where one doesn't have it."""
    layers = expected_layers(model)
    for path, layer in layers.items():
        check_name(path, layer, name)
    for layer in layers.values():
        layer.set_adapter(name)
    for module in saved_modules(model).values():
        module.set_adapter(name)


def delete_adapter(model: nn.Module, name: str) -> None:
    """Removes an adapter. Raises KeyError where a layer doesn't have it, ValueError where it is the active one."""
    layers = expected_layers(model)
    for path, layer in layers.items():
        check_name(path, layer, name)
        if layer.active_adapter == name:
            raise ValueError(f"name: {name!r} is the active adapter of {path!r}; set another one first")
    for layer in layers.values():
        del layer.adapters[name]
    for module in saved_modules(model).values():
        if name in module.copies:
            del module.copies[name]


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Inside, every layer is its base, also a merged one: merged again afterwards."""
    layers: list[Any] = [*expected_layers(model).values(), *saved_modules(model).values()]
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
    """Inside, row i of every batch goes through the adapter `names[i]`, or through the base alone (None); merged layers
    too. LoRA and rsLoRA, of embeddings too; all rows in one product, where no adapter drops or has a bias. A batch
    with each row repeated (beams, several sequences a prompt) repeats the names.

    Raises KeyError for an unknown name, ValueError for another method, no name at all, or later another number of rows.
    """
    if not names:
        raise ValueError("names: expected one for each row, got none")
    layers = expected_layers(model)
    for path, layer in layers.items():
        if not isinstance(layer, (LoraLinear, LoraEmbedding)):
            raise ValueError(f"model: expected LoRA layers, {path!r} is a {type(layer).__name__}")
        for name in {name for name in names if name is not None}:
            check_name(path, layer, name)
    for path, module in saved_modules(model).items():
        if any(name in module.copies for name in names if name is not None):
            raise ValueError(
                f"names: one of them has a copy of {path!r} (modules_to_save), all rows would go through it"
            )
    before = {layer: layer.row_adapters for layer in layers.values()}
    try:
        for layer in layers.values():
            layer.row_adapters = tuple(names)
        yield model
    finally:
        for layer, rows in before.items():
            layer.row_adapters = rows


@torch.no_grad()
def combine_adapters(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    how: str = "cat",
    rank: int | None = None,
) -> None:
    """A new adapter `name` from several of LoRA, as PEFT's add_weighted_adapter makes it; with Δ_i = s_i B_i A_i:

    "cat"       Σ w_i Δ_i exactly, of the sum of their ranks
    "svd"       the `rank` largest singular triplets of Σ w_i Δ_i (None: the largest of their ranks)
    "linear"    A = Σ ±√|w_i s_i| A_i, B = Σ √|w_i s_i| B_i, of their common rank: not the sum of the Δ_i

    Raises KeyError for an unknown adapter, ValueError for unequal ranks ("linear"), adapters that aren't LoRA's or have
    biases, or a name that is taken, before anything is changed.
    """
    check_choice("how", how, COMBINATIONS)
    if rank is not None:
        check_rank("rank", rank)
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"weights: expected finite numbers, got {weight!r}")
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"adapters, weights: expected as many of each, got {len(adapters)} and {len(weights)}")
    layers = expected_layers(model)
    for path, layer in layers.items():
        if not isinstance(layer, LoraLinear):
            raise ValueError(f"model: expected LoRA layers, {path!r} is a {type(layer).__name__}")
        if name in layer.adapters:
            raise ValueError(f"name: expected a new one, {path!r} has an adapter {name!r} already")
        for one in adapters:
            check_name(path, layer, one)
            if getattr(layer.adapters[one], "bias", None) is not None:
                raise ValueError(f"adapters: {one!r} of {path!r} has a bias of its own")
        ranks: set[Any] = {layer.adapters[one].rank for one in adapters}
        if how == "linear" and len(ranks) > 1:
            raise ValueError(
                f"how: 'linear' needs one rank, the adapters of {path!r} have {sorted(ranks)}; 'cat' does not"
            )
    for layer in layers.values():
        parts: list[Adapter] = [layer.adapters[one] for one in adapters]  # type: ignore[misc]
        A, B = _combined(parts, weights, how, rank)
        # α = r: a scaling of 1
        layer.add_adapter(name, A.shape[0], A.shape[0], parts[0].dropout)
        made: Adapter = layer.adapters[name]  # type: ignore[assignment]
        made.A.copy_(A)
        made.B.copy_(B)


def _combined(
    parts: list[Adapter], weights: Sequence[float], how: str, rank: int | None
) -> tuple[torch.Tensor, torch.Tensor]:
    factors = [weight * part.scaling for part, weight in zip(parts, weights, strict=True)]
    pairs = list(zip(parts, factors, strict=True))
    if how == "linear":
        A = sum(math.copysign(math.sqrt(abs(factor)), factor) * part.A for part, factor in pairs)
        B = sum(math.sqrt(abs(factor)) * part.B for part, factor in pairs)
        return A, B  # type: ignore[return-value]
    A = torch.cat([factor * part.A for part, factor in pairs])
    B = torch.cat([part.B for part in parts], 1)
    if how == "cat":
        return A, B
    # of B A through two small factors: W-sized products aren't needed
    (Q_b, R_b), (Q_a, R_a) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T)
    rank = min(rank or max(part.rank for part in parts), len(S))
    return (Q_a @ Vh[:rank].T).T.contiguous(), (Q_b @ U[:, :rank]) * S[:rank]


def check_name(path: str, layer: AdapterLayer, name: str, argument: str = "name") -> None:
    """Raises KeyError, beginning with the `argument`, where a layer has no adapter of that name."""
    if name not in layer.adapters:
        raise KeyError(f"{argument}: expected one of {list(layer.adapters)}, which {path!r} has, got {name!r}")
