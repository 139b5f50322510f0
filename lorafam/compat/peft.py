"""PEFT beside its documented interface, seen alike in 0.21.0, 0.21.1 and 0.21.2."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from peft.tuners.lora import dora
from peft.utils.integrations import dequantize_module_weight

try:
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
except ImportError:
    # PEFT has it beside transformers 5 alone
    convert_peft_config_for_transformers = None

__all__ = [
    "caches_dora_norms",
    "dequantize_module_weight",
    "forget_dora_norms",
    "kept_dora_norm",
    "taken_for_experts",
]


def caches_dora_norms() -> bool:
    """Whether PEFT keeps DoRA's norms in evaluation (`DoraCaching`)."""
    return dora.ENABLE_DORA_CACHING


def forget_dora_norms(magnitude: Any) -> None:
    """Drops what a DoRA layer's magnitude module keeps."""
    magnitude._cache_clear()


def kept_dora_norm(magnitude: Any, adapter: str) -> Any:
    """The norm it keeps, or None."""
    return magnitude._cache_get(f"weight-norm-{adapter}", None)


def taken_for_experts(model: Any, paths: list[str]) -> list[str]:
    """Those of `paths` that PEFT, reading an adapter for this model, takes for a mixture's fused experts by their names
    (`gate_proj` of DeepSeek-V3's shared experts).
    """
    if convert_peft_config_for_transformers is None:
        return []
    config = LoraConfig(target_modules=list(paths))
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        # some of the names that are fused without the others
        return list(paths)
    return [path for path in paths if path not in config.target_modules]
