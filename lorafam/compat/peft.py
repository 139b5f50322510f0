"""PEFT beside its documented interface, seen alike in 0.21.0, 0.21.1 and 0.21.2."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora import dora
from peft.utils.integrations import dequantize_module_weight

__all__ = ["caches_dora_norms", "dequantize_module_weight", "forget_dora_norms", "kept_dora_norm"]


def caches_dora_norms() -> bool:
    """Whether PEFT keeps DoRA's norms in evaluation (`DoraCaching`)."""
    return dora.ENABLE_DORA_CACHING


def forget_dora_norms(magnitude: Any) -> None:
    """Drops what a DoRA layer's magnitude module keeps."""
    magnitude._cache_clear()


def kept_dora_norm(magnitude: Any, adapter: str) -> Any:
    """The norm it keeps, or None."""
    return magnitude._cache_get(f"weight-norm-{adapter}", None)
