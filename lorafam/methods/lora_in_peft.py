"""LoRA's and DoRA's settings in PEFT's adapter_config.json, both ways."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from ..config import AdapterConfig, starts_from_weight
from .adapter import Adapter
from .method import Method

# init_lora_weights that leave the base as it is; PEFT takes the others' part out of the base again when it loads
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
_AGAIN = ("pissa", "olora")
# an adapter for the base as it was before a part of it was taken: rank over the trained one's
_RESTORED = 2


def flag(values: Mapping[str, Any], key: str) -> bool:
    """A truth value of a file; null is false. Raises ValueError for anything else."""
    value = values.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key}: expected true or false, got {value!r}")
    return bool(value)


class LoraInPeft(Method):
    """What LoRA and DoRA share; `use_dora` tells them apart."""

    use_dora: ClassVar[bool]

    @classmethod
    def reads(cls, values: Mapping[str, Any]) -> bool:
        return flag(values, "use_dora") == cls.use_dora

    @classmethod
    def from_peft(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """`init` is "pissa" or "olora" where the tensors are for a base that has lost a part to them."""
        bias = flag(values, "lora_bias")
        if cls.use_dora and bias:
            raise ValueError("lora_bias = True is not supported with use_dora, expected False")
        return {
            "r": values.get("r", 8),
            "alpha": values.get("lora_alpha", 8),
            "dropout": values.get("lora_dropout", 0.0),
            "rslora": flag(values, "use_rslora"),
            "bias": bias,
            # PEFT drops the input of both paths
            "dora_dropout": "input",
            "rank_pattern": values.get("rank_pattern") or {},
            "alpha_pattern": values.get("alpha_pattern") or {},
            "init": _init(values.get("init_lora_weights", True)),
        }

    @classmethod
    def to_peft(cls, config: AdapterConfig, adapters: Mapping[str, Adapter], model: nn.Module) -> dict[str, Any]:
        """Of twice the rank where a part of the base was taken (`model.peft_format.adapter_tensors`), which of an
        embedding isn't.
        """
        more = _RESTORED if starts_from_weight(config.init) else 1
        whole = {f"^{re.escape(path)}": one for path, one in adapters.items() if more > 1 and one.start_A is None}
        ranks = {key: one.rank for key, one in whole.items()}
        alphas = {key: one.alpha_now for key, one in whole.items()}
        # α/r and α/√r as they were
        alpha = math.sqrt(more) if config.rslora else more
        return {
            "r": config.r * more,
            "lora_alpha": config.alpha * alpha,
            "lora_dropout": config.dropout,
            "use_dora": cls.use_dora,
            "use_rslora": config.rslora,
            "lora_bias": config.bias,
            "init_lora_weights": "gaussian" if config.init == "gaussian" else True,
            # the first key that fits counts
            "rank_pattern": ranks | {name: rank * more for name, rank in config.rank_pattern.items()},
            "alpha_pattern": alphas | {name: value * alpha for name, value in config.alpha_pattern.items()},
        }


def _init(value: object) -> str:
    if isinstance(value, bool) or value is None or value in _KEEPS_BASE:
        return "default"
    if value in _AGAIN:
        return str(value)
    if isinstance(value, str):
        raise ValueError(
            f"init_lora_weights = {value!r}: its tensors are for a base that was changed in a way that "
            "can't be formed again, expected a file converted by path_initial_model_for_weight_conversion"
            if value.startswith(("pissa", "olora", "corda", "loftq", "lora_ga"))
            else f"init_lora_weights = {value!r} is not known, expected one of {_KEEPS_BASE + _AGAIN}"
        )
    raise ValueError(f"init_lora_weights: expected true, false or a name, got {value!r}")
