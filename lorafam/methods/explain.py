"""`explain`: which path runs for a layer or a weight at M tokens, on which backend, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from ..backends import selection
from ..weights import NF4Weight
from .adapter_layer import AdapterLayer
from .base_weight import base_weight
from .nf4_linear import NF4Linear


class Explanation(NamedTuple):
    """`path` is what is computed ("panels", "dense", "base module", ...), `backend` who computes it, `reason` why."""

    path: str
    backend: str
    reason: str
    tokens: int

    def __str__(self) -> str:
        return f"{self.tokens} tokens: {self.path} on {self.backend} ({self.reason})"


def explain(layer_or_weight: nn.Module | NF4Weight | torch.Tensor, M: int) -> Explanation:
    """What runs for `M` tokens. Raises TypeError for what lorafam has no path for, ValueError for a negative M."""
    if isinstance(M, bool) or not isinstance(M, int) or M < 0:
        raise ValueError(f"M: expected a number of tokens, got {M!r}")
    weight: torch.Tensor | NF4Weight | None
    why = ""
    if isinstance(layer_or_weight, AdapterLayer):
        if layer_or_weight.merged or not layer_or_weight.enabled:
            state = "merged into" if layer_or_weight.merged else "disabled; only"
            return Explanation("base module", "torch", f"the adapter is {state} the base layer", M)
        weight, why = base_weight(layer_or_weight.base_layer)
        if weight is None:
            choice = selection.choose(layer_or_weight.A.device.type)
            return Explanation("base module + low rank", choice.backend, why, M)
    elif isinstance(layer_or_weight, NF4Linear):
        weight = layer_or_weight.weight
    elif isinstance(layer_or_weight, (NF4Weight, torch.Tensor)):
        weight = layer_or_weight
    else:
        raise TypeError(f"layer_or_weight: expected a lorafam layer or a weight, got {type(layer_or_weight).__name__}")
    choice = selection.choose(weight.device.type, "lora_linear")
    reason = f"{why}; {choice.reason}" if why else choice.reason
    if choice.backend in ("triton", "simulate", "interpret"):
        from ..backends.triton_gpu.lora_linear import path as path_for

        four_bit = isinstance(weight, NF4Weight)
        path = path_for(M, weight.shape[0], weight.shape[1], weight.device, weight.dtype, four_bit)
        return Explanation(path, choice.backend, reason, M)
    if isinstance(weight, torch.Tensor):
        return Explanation("dense", choice.backend, reason, M)
    path = "panels" if choice.backend == "numba" else "dequantise, then multiply"
    return Explanation(path, choice.backend, reason, M)
