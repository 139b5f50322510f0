"""Which modules of a model an `AdapterConfig` means, and the rank and alpha of each."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from ..methods import AdapterLayer, NF4Linear
from ..methods.base_weight import base_sizes, is_bitsandbytes_4bit
from ..methods.conv1d import is_conv1d
from .weight_readers import reader_of


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer by class: dense, Conv1D, lorafam's 4-bit or bitsandbytes'."""
    return isinstance(module, (nn.Linear, NF4Linear)) or is_conv1d(module) or is_bitsandbytes_4bit(module)


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, which gets no adapter by default and stays dense."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


def find_targets(model: nn.Module, target_modules: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """Path → module. Raises ValueError for a name that no module has, with names that come near it, and for modules
    that can't be adapted.
    """
    modules = _adaptable_paths(model)
    if target_modules is None or target_modules == "all-linear":
        head = output_head(model)
        found = {path: module for path, module in modules.items() if is_linear(module) and module is not head}
        skipped = {path: reader for path in found if (reader := reader_of(model, path))}
        found = {path: module for path, module in found.items() if path not in skipped}
        if skipped:
            readers = ", ".join(sorted(set(skipped.values())))
            warnings.warn(
                f"target_modules: no adapter on {len(skipped)} linear layers, {next(iter(skipped))!r} for example: "
                f"{readers} computes with their weights itself",
                stacklevel=3,
            )
        if not found:
            raise ValueError("target_modules: the model has no linear layer")
        return found
    regular = isinstance(target_modules, str)
    names = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    found = _check_sizes(_matching(modules, names, regular=regular))
    for path in found:
        reader = reader_of(model, path)
        if reader:
            raise ValueError(
                f"target_modules: {path!r} can't be adapted: {reader} computes with its weight itself and would skip "
                "the adapter"
            )
    return found


def _adaptable_paths(model: nn.Module) -> dict[str, nn.Module]:
    """All modules but the root and the insides of adapter layers."""
    paths: dict[str, nn.Module] = {}
    inside = ""
    for path, module in model.named_modules():
        if inside and path.startswith(inside):
            continue
        if isinstance(module, AdapterLayer):
            inside = f"{path}."
        if path:
            paths[path] = module
    return paths


def _matching(modules: dict[str, nn.Module], names: list[str], *, regular: bool) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name in names:
        hits = {
            path: module
            for path, module in modules.items()
            if (re.fullmatch(name, path) if regular else path == name or path.endswith(f".{name}"))
        }
        if not hits:
            endings = sorted({path.rsplit(".", 1)[-1] for path, module in modules.items() if is_linear(module)})
            near = difflib.get_close_matches(name, endings, n=3) or endings[:8]
            raise ValueError(f"target_modules: no module is called {name!r}; the model has {', '.join(near)}")
        found.update(hits)
    return found


def _check_sizes(found: dict[str, nn.Module]) -> dict[str, nn.Module]:
    for path, module in found.items():
        if isinstance(module, (AdapterLayer, nn.Embedding)):
            continue
        try:
            base_sizes(module)
        except ValueError as error:
            raise ValueError(f"target_modules: {path!r} can't be adapted ({error})") from None
    return found


def pattern_value(pattern: Mapping[str, float], path: str, default: float) -> float:
    """The value of the first key that ends the path, as a regular expression, as PEFT reads rank_pattern and
    alpha_pattern.
    """
    for key, value in pattern.items():
        if re.fullmatch(rf"(.*\.)?({key})", path):
            return value
    return default
