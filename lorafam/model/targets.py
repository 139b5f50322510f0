"""Which modules of a model an `AdapterConfig` means, and the rank and alpha of each."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence

from torch import nn

from ..config import AdapterConfig
from ..methods import AdapterLayer, NF4Linear
from ..methods.base_weight import base_sizes, is_bitsandbytes_4bit
from ..methods.conv1d import is_conv1d
from .expressions import matched
from .saved_module import SavedModule, find_saved, inside, outer_modules
from .weight_readers import reader_of


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer by class: dense, Conv1D, lorafam's 4-bit or bitsandbytes'."""
    return isinstance(module, (nn.Linear, NF4Linear)) or is_conv1d(module) or is_bitsandbytes_4bit(module)


def output_head(model: nn.Module) -> nn.Module | None:
    """The layer that makes logits, which gets no adapter by default and stays dense."""
    get = getattr(model, "get_output_embeddings", None)
    return get() if callable(get) else None


def find_targets(model: nn.Module, config: AdapterConfig, *, some: bool = False) -> dict[str, nn.Module]:
    """Path → module; with `some` it is enough that some of the names are a module's, as in PEFT. Raises ValueError for
    a name that no module has, with names that come near it, and for modules that can't be adapted.
    """
    saved = find_saved(model, config.modules_to_save, config.target_modules)
    every = _adaptable_paths(model)
    modules = {path: module for path, module in every.items() if not inside(path, saved)}
    names = config.target_modules
    if isinstance(names, list) and not names:
        return {}
    if names is None or names == "all-linear":
        head = output_head(model)
        head = head.base_layer if isinstance(head, AdapterLayer) else head
        targets = {path: module for path, module in modules.items() if is_linear(module) and module is not head}
        skipped = {path: reader for path in targets if (reader := reader_of(model, path))}
        targets = {path: module for path, module in targets.items() if path not in skipped}
        if skipped:
            readers = ", ".join(sorted(set(skipped.values())))
            warnings.warn(
                f"target_modules: no adapter on {len(skipped)} linear layers, {next(iter(skipped))!r} for example: "
                f"{readers} computes with their weights itself",
                stacklevel=3,
            )
        if not targets:
            raise ValueError("target_modules: the model has no linear layer")
    elif isinstance(names, str):
        targets = _matching(modules, [names], regular=True)
    else:
        listed = sorted(names) if isinstance(names, set | frozenset) else list(names)
        known = [name for name in listed if any(_ends(path, name) for path in modules)]
        # a module that is trained whole too is no slip, as long as others are adapted
        if known:
            listed = [name for name in listed if name in known or not any(_ends(path, name) for path in every)]
        targets = _matching(modules, known if some and known else listed, regular=False)
    return checked_targets(model, _selected(targets, config))


def checked_targets(model: nn.Module, targets: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The same modules by path. Raises ValueError for one of unknown sizes, or whose weight another module reads."""
    _check_sizes(targets)
    for path in targets:
        reader = reader_of(model, path)
        if reader:
            raise ValueError(
                f"target_modules: {path!r} can't be adapted: {reader} computes with its weight itself and would skip "
                "the adapter"
            )
    return targets


def _selected(targets: dict[str, nn.Module], config: AdapterConfig) -> dict[str, nn.Module]:
    """Without what `exclude_modules` and `layers_to_transform` leave out, read as PEFT reads them."""
    excluded: set[str] = set()
    if isinstance(config.exclude_modules, str):
        excluded = matched(config.exclude_modules, targets, "exclude_modules")
    elif config.exclude_modules is not None:
        excluded = {path for path in targets if any(_ends(path, name) for name in config.exclude_modules)}
    if config.exclude_modules is not None and not excluded:
        told = f"exclude_modules: no module that is adapted is called so: {config.exclude_modules!r}"
        warnings.warn(told, stacklevel=3)
    kept = {path: module for path, module in targets.items() if path not in excluded}
    if config.layers_to_transform is not None:
        wanted = config.layers_to_transform
        indices = {wanted} if isinstance(wanted, int) else set(wanted)
        whole = set(config.target_modules or ()) if not isinstance(config.target_modules, str) else set()
        # PEFT takes a path that is named whole, whatever its layer
        layers = {path: layer_index(path, config.layers_pattern) for path in kept}
        kept = {path: module for path, module in kept.items() if path in whole or layers[path] in indices}
    # parameters may be left
    if not kept and config.target_parameters is None:
        raise ValueError(
            "exclude_modules, layers_to_transform: no module is left to adapt, expected at least one of "
            f"{', '.join(list(targets)[:4])}"
        )
    return kept


def layer_index(path: str, pattern: str | Sequence[str] | None = None) -> int | None:
    """The number of the layer that a module is in: the first in its path, or that after one of the names in `pattern`
    (regular expressions).
    """
    if not pattern:
        match = re.match(r".*?\.[^.]*\.(?P<idx>\d+)\.", path)
        return int(match["idx"]) if match else None
    for name in [pattern] if isinstance(pattern, str) else pattern:
        match = re.match(rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\.", path)
        if match:
            return int(match["idx"])
    return None


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")


def _adaptable_paths(model: nn.Module) -> dict[str, nn.Module]:
    """All modules but the root and those that are trained whole; of adapter layers their bases."""
    paths = {path: module for path, module in outer_modules(model).items() if path}
    return {
        path: module.base_layer if isinstance(module, AdapterLayer) else module
        for path, module in paths.items()
        if not isinstance(module, SavedModule)
    }


def _matching(modules: dict[str, nn.Module], names: list[str], *, regular: bool) -> dict[str, nn.Module]:
    paths: dict[str, nn.Module] = {}
    for name in names:
        ending = {path for path in modules if _ends(path, name)}
        meant = matched(name, modules, "target_modules") if regular else ending
        hits = {path: module for path, module in modules.items() if path in meant}
        if not hits:
            endings = sorted({path.rsplit(".", 1)[-1] for path, module in modules.items() if is_linear(module)})
            near = difflib.get_close_matches(name, endings, n=3) or endings[:8]
            raise ValueError(f"target_modules: no module is called {name!r}; the model has {', '.join(near)}")
        paths.update(hits)
    # in the model's order
    return {path: module for path, module in modules.items() if path in paths}


def _check_sizes(targets: dict[str, nn.Module]) -> dict[str, nn.Module]:
    for path, module in targets.items():
        if isinstance(module, nn.Embedding):
            continue
        try:
            base_sizes(module)
        except ValueError as error:
            raise ValueError(f"target_modules: {path!r} can't be adapted ({error})") from None
    return targets


def pattern_values(
    pattern: Mapping[str, float], paths: Sequence[str], default: float, name: str | None
) -> dict[str, float]:
    """Path → value of the first key that ends it, as a regular expression, as PEFT reads rank_pattern and
    alpha_pattern; errors begin with `name`.
    """
    values: dict[str, float] = {}
    for key, value in pattern.items():
        for path in _ended(key, paths, name):
            values.setdefault(path, value)
    return {path: values.get(path, default) for path in paths}


def tell_unmatched(config: AdapterConfig, paths: Sequence[str]) -> None:
    """Warns of each key of rank_pattern and alpha_pattern that none of these paths has: all that is adapted, parameters
    too.
    """
    for name, pattern in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for key in pattern:
            if not _ended(key, paths, name):
                near = difflib.get_close_matches(key, {path.rsplit(".", 1)[-1] for path in paths}, n=1)
                hint = f", did you mean {near[0]!r}?" if near else ""
                warnings.warn(f"{name}: no adapted module is called {key!r}{hint}", stacklevel=3)


def _ended(key: str, paths: Sequence[str], name: str | None) -> set[str]:
    return matched(rf"(.*\.)?({key})", paths, name or "pattern")
