"""adapter_config.json, both ways: PEFT's keys, which of them lorafam has, and which can be left aside.

A key that isn't listed is a newer PEFT's: left aside where it says nothing (null, false, empty), refused otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import METHODS, AdapterLayer, LoraParameter
from ..methods.conv1d import stands_for_conv1d
from ..methods.registry import method_of_peft
from .parameter_targets import pattern_path
from .targets import pattern_values
from .tensor_keys import clean_path

CONFIG_FILE = "adapter_config.json"
# of any method, read below
_READ = {
    "peft_type", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "bias",
    "modules_to_save", "trainable_token_indices", "target_parameters",
}  # fmt: skip
# where it came from, how it started or trains, and what the tensors say themselves; none changes what is computed
_LEFT_ASIDE = {
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "runtime_config", "ensure_weight_tying", "velora_config",
    "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step",
}  # fmt: skip


def adapter_config(values: Mapping[str, Any]) -> AdapterConfig:
    """The `AdapterConfig` of an adapter_config.json; `init` is "pissa" or "olora" where its tensors are for a base that
    has lost a part to them. Raises ValueError, with the key, for what lorafam doesn't have and for a wrong type.
    """
    try:
        method = method_of_peft(values)
        own = method.from_peft(values)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE}: {error}") from None
    for key, value in values.items():
        if key not in _READ | _LEFT_ASIDE | method.peft_keys and not _says_nothing(value):
            raise ValueError(f"{CONFIG_FILE}: {key} = {value!r} is not supported, expected none")
    settings: dict[str, Any] = {
        "method": method.method,
        "target_modules": values.get("target_modules"),
        "exclude_modules": values.get("exclude_modules") or None,
        "layers_to_transform": _or_none(values.get("layers_to_transform")),
        "layers_pattern": values.get("layers_pattern") or None,
        # a file that names none has none
        "modules_to_save": values.get("modules_to_save") or (),
        "base_bias": values.get("bias") or "none",
        "trainable_token_indices": values.get("trainable_token_indices") or None,
        "target_parameters": values.get("target_parameters") or None,
        **own,
    }
    if settings["layers_to_transform"] is None:
        settings["layers_pattern"] = None
    try:
        return AdapterConfig(**settings)
    except ValueError as error:
        raise ValueError(f"{CONFIG_FILE}: {_in_peft_words(str(error))}") from None


def _says_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", [], {})


def _or_none(value: object) -> object:
    return None if value == [] else value


def _in_peft_words(message: str) -> str:
    name, colon, rest = message.partition(":")
    return _PEFT_WORDS.get(name, name) + colon + rest


_PEFT_WORDS = {
    "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora", "bias": "lora_bias", "base_bias": "bias",
}  # fmt: skip


def peft_config(
    model: nn.Module,
    config: AdapterConfig,
    layers: dict[str, AdapterLayer],
    saved: list[str],
    tokens: dict[str, list[int]],
    name: str | None,
) -> dict[str, Any]:
    """adapter_config.json of the active adapters, or those called `name`, as PEFT reads it; its keys sorted, but those
    of patterns in their own order. Raises ValueError for what PEFT would read otherwise.
    """
    modules = {path: layer for path, layer in layers.items() if not isinstance(layer, LoraParameter)}
    values: dict[str, Any] = {
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "bias": config.base_bias,
        "fan_in_fan_out": bool(modules) and all(stands_for_conv1d(layer.base_layer) for layer in modules.values()),
        "inference_mode": True,
        "modules_to_save": saved or None,
        "trainable_token_indices": tokens or None,
        "target_modules": target_names(model, modules) if modules else [],
        "target_parameters": sorted(pattern_path(path, one) for path, one in layers.items() if path not in modules)
        or None,
        "task_type": "CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None,
    }
    adapters: dict[str, Any] = {path: layer.adapter_called(name) for path, layer in layers.items()}
    method = METHODS[config.method]
    values |= {"peft_type": method.peft_type, **method.to_peft(config, adapters, model)}
    # what a class of PEFT's doesn't know it warns of
    return {key: value for key, value in sorted(values.items()) if value is not None or key not in method.unknown_keys}


def config_of(layers: dict[str, AdapterLayer], name: str | None, first: AdapterConfig) -> AdapterConfig:
    """What the active adapters, or those called `name`, are: they know their settings themselves. Of `first`, which the
    model was adapted with, only what they don't know is taken, and the words of its patterns where they are right.
    """
    adapters: dict[str, Any] = {path: layer.adapter_called(name) for path, layer in layers.items()}
    told = {path: pattern_path(path, layer) for path, layer in layers.items()}
    ranks = {told[path]: int(adapter.rank) for path, adapter in adapters.items()}
    alphas = {told[path]: adapter.alpha_now for path, adapter in adapters.items()}
    one = next(iter(adapters.values()))
    started = any(adapter.start_A is not None for adapter in adapters.values())
    settings: dict[str, Any] = {
        "method": one.kind.method,
        "dropout": one.dropout,
        "rslora": one.rslora,
        "bias": any(getattr(adapter, "bias", None) is not None for adapter in adapters.values()),
        "init": first.init if started or not starts_from_weight(first.init) else "default",
    }
    # `first` may be of another method
    method = METHODS[settings["method"]]
    settings["method_settings"] = first.method_settings if first.method == method.method else {}
    settings |= method.lacking()
    paths = list(ranks)
    if (
        pattern_values(first.rank_pattern, paths, first.r, None) != ranks
        or pattern_values(first.alpha_pattern, paths, first.alpha, None) != alphas
    ):
        settings["r"], settings["rank_pattern"] = _by_path(ranks)
        settings["alpha"], settings["alpha_pattern"] = _by_path(alphas)
    for setting in ("rslora", "dropout"):
        unlike = next(
            (path for path, adapter in adapters.items() if getattr(adapter, setting) != getattr(one, setting)), None
        )
        if unlike is not None:
            raise ValueError(f"adapter: {setting} differs between its layers ({unlike!r}), a file has one for all")
    return replace(first, **settings)


def _by_path(values: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The commonest value, and the others by whole path, longer ones first: the first key that fits counts."""
    counts = list(values.values())
    common = max(counts, key=counts.count)
    ambiguous = {path for path in values for other in values if other.endswith(f".{path}")}
    named = sorted((path for path in values if values[path] != common), key=len, reverse=True)
    patterns = {f"^{path}" if path in ambiguous else path: values[path] for path in named}
    # a dot is any sign in an expression, which only matters where another path differs in just that
    if pattern_values(patterns, list(values), common, None) != values:
        patterns = {f"^{re.escape(path)}": values[path] for path in named}
    return common, patterns


def target_names(model: nn.Module, layers: dict[str, AdapterLayer]) -> list[str] | str:
    """What means these layers and no others: last parts of their paths, whole paths, or a regular expression."""
    inside = tuple(f"{path}." for path in layers)
    every = [path for path, _ in model.named_modules()]
    others = {path for path in map(clean_path, every) if not path.startswith(inside)} - layers.keys()
    for names in ({path.rsplit(".", 1)[-1] for path in layers}, set(layers)):
        endings = tuple(f".{name}" for name in names)
        if not any(path in names or path.endswith(endings) for path in others):
            return sorted(names)
    return "|".join(re.escape(path) for path in sorted(layers))
