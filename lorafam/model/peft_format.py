"""PEFT's adapter format: what adapter_config.json says, and how tensors are named in adapter_model.safetensors.

A tensor's name is "base_model.model." + the module's path + one of

    LoRA      .lora_A.weight [r, K]   .lora_B.weight [N, r]   .lora_B.bias [N]
              of an embedding [V, D]: .lora_embedding_A [r, V]   .lora_embedding_B [D, r]
    DoRA      the same and .lora_magnitude_vector [N]
    AdaLoRA   .lora_A [r, K]   .lora_E [r, 1]   .lora_B [N, r], pruned ranks left out and listed in rank_pattern
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..config import AdapterConfig, starts_from_weight
from ..methods import AdapterLayer, LoraEmbedding
from ..methods.conv1d import is_conv1d

PREFIX = "base_model.model."
CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
# an adapter for the base as it was before a part of it was taken: rank over the trained one's
_RESTORED = 2
# a trained AdaLoRA adapter without its schedule: PEFT asks for one that has room for a budgeting phase
_DEFAULT_SCHEDULE = {"total_step": 1, "tinit": 0, "tfinal": 0, "deltaT": 1}


def tensor_names(method: str) -> dict[str, str]:
    """Attribute of an `Adapter` → ending of the tensor's name."""
    if method == "adalora":
        return {"A": "lora_A", "E": "lora_E", "B": "lora_B"}
    names = {"A": "lora_A.weight", "B": "lora_B.weight"}
    if method == "dora":
        names["magnitude"] = "lora_magnitude_vector"
    else:
        names["bias"] = "lora_B.bias"
    return names


def names_of(layer: AdapterLayer) -> dict[str, str]:
    """Attribute of a layer's adapter → ending of the tensor's name."""
    if isinstance(layer, LoraEmbedding):
        return {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    return tensor_names(layer.method)


def adapter_tensors(layers: dict[str, AdapterLayer], name: str | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of the active adapters, or of those called `name`, under PEFT's name; pruned AdaLoRA ranks are left
    out.

    Where a part of the base weight was taken into A₀ and B₀, the adapter for the base as it was: s (B A − B₀ A₀), of
    twice the rank.
    """
    tensors = {}
    for path, layer in layers.items():
        adapter: Any = layer.active if name is None else layer.adapters[name]
        for attribute, ending in names_of(layer).items():
            tensor = getattr(adapter, attribute, None)
            if tensor is None:
                continue
            kept = adapter.kept_ranks
            if kept is not None and len(kept) == adapter.A.shape[0]:
                mask = torch.tensor(kept, device=tensor.device)
                tensor = tensor[:, mask] if attribute == "B" else tensor[mask]
            if attribute == "A" and adapter.start_A is not None:
                tensor = torch.cat([tensor, adapter.start_A.to(tensor)])
            if attribute == "B" and adapter.start_B is not None:
                tensor = torch.cat([tensor, -adapter.start_B.to(tensor)], 1)
            tensors[f"{PREFIX}{path}.{ending}"] = tensor.detach().contiguous()
    return tensors


def peft_config(model: nn.Module, config: AdapterConfig, layers: dict[str, AdapterLayer]) -> dict[str, Any]:
    """adapter_config.json as PEFT reads it."""
    common: dict[str, Any] = {
        "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
        "bias": "none",
        "fan_in_fan_out": all(is_conv1d(layer.base_layer) for layer in layers.values()),
        "inference_mode": True,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "target_modules": target_names(model, layers),
        "task_type": "CAUSAL_LM" if type(model).__name__.endswith("ForCausalLM") else None,
    }
    if config.method == "adalora":
        patterns = {
            f"{path}.lora_E": layer.active.kept_ranks
            for path, layer in layers.items()
            if layer.active.kept_ranks is not None
        }
        schedule = {"target_r": config.r, **_DEFAULT_SCHEDULE, **getattr(model, "lorafam_rank_schedule", {})}
        return {
            **common,
            "peft_type": "ADALORA",
            "init_r": config.r,
            **schedule,
            "rank_pattern": patterns or None,
        }
    more = _RESTORED if starts_from_weight(config.init) else 1
    # α/r and α/√r as they were
    alpha = math.sqrt(more) if config.rslora else more
    return {
        **common,
        "lora_alpha": config.alpha * alpha,
        "peft_type": "LORA",
        "r": config.r * more,
        "use_dora": config.method == "dora",
        "use_rslora": config.rslora,
        "lora_bias": config.bias,
        "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
        "rank_pattern": {name: rank * more for name, rank in config.rank_pattern.items()},
        "alpha_pattern": {name: value * alpha for name, value in config.alpha_pattern.items()},
    }


def config_of(layers: dict[str, AdapterLayer], name: str, first: AdapterConfig) -> AdapterConfig:
    """What the adapters called `name` were made with, as far as they know; the rest is the first ones'."""
    adapters: dict[str, Any] = {path: layer.adapters[name] for path, layer in layers.items()}
    common = Counter((adapter.rank, adapter.alpha) for adapter in adapters.values()).most_common(1)[0][0]
    one = next(iter(adapters.values()))
    return replace(
        first,
        r=common[0],
        alpha=common[1],
        dropout=one.dropout,
        rslora=one.rslora,
        bias=getattr(one, "bias", None) is not None,
        init=first.init if one.start_A is not None else "default",
        rank_pattern={path: adapter.rank for path, adapter in adapters.items() if adapter.rank != common[0]},
        alpha_pattern={path: adapter.alpha for path, adapter in adapters.items() if adapter.alpha != common[1]},
    )


def target_names(model: nn.Module, layers: dict[str, AdapterLayer]) -> list[str]:
    """The shortest names that mean these layers and no others: last parts of their paths, or whole paths."""
    endings = {path.rsplit(".", 1)[-1] for path in layers}
    adapted = tuple(f"{path}." for path in layers)
    meant = {
        path for path, _ in model.named_modules() if path.rsplit(".", 1)[-1] in endings and not path.startswith(adapted)
    }
    return sorted(endings if meant == set(layers) else layers)


def adapter_config(values: dict[str, Any]) -> AdapterConfig:
    """The `AdapterConfig` of an adapter_config.json. Raises ValueError for what lorafam doesn't have."""
    kind = values.get("peft_type")
    if kind not in ("LORA", "ADALORA"):
        raise ValueError(f"{CONFIG_FILE}: expected peft_type LORA or ADALORA, got {kind!r}")
    for key in ("modules_to_save", "layers_to_transform", "target_parameters", "alora_invocation_tokens"):
        if values.get(key):
            raise ValueError(f"{CONFIG_FILE}: {key} = {values[key]!r} is not supported")
    if values.get("bias", "none") != "none":
        raise ValueError(f"{CONFIG_FILE}: bias = {values['bias']!r} is not supported, expected 'none'")
    common: dict[str, Any] = {
        "alpha": values.get("lora_alpha", 8),
        "dropout": values.get("lora_dropout", 0.0),
        "target_modules": values.get("target_modules"),
    }
    if kind == "ADALORA":
        return AdapterConfig(method="adalora", r=values.get("init_r", 12), **common)
    return AdapterConfig(
        method="dora" if values.get("use_dora") else "lora",
        r=values.get("r", 8),
        rslora=bool(values.get("use_rslora")),
        bias=bool(values.get("lora_bias")),
        # PEFT drops the input of both paths
        dora_dropout="input",
        rank_pattern=values.get("rank_pattern") or {},
        alpha_pattern=values.get("alpha_pattern") or {},
        **common,
    )
