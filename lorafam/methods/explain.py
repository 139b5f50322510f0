"""`explain`: which path runs for a layer or a weight at M tokens, on which backend, and why."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..backends import selection
from ..backends.plan import Plan
from ..ops.by_storage import dense_storage
from ..weights import NF4Weight
from .adapter_layer import AdapterLayer
from .base_weight import base_device, base_weight
from .nf4_linear import NF4Linear


class Explanation(NamedTuple):
    """`path` is what is computed ("registers", "tiles", "dense", ...), `backend` who computes it, `reason` why.

    Of kernels also their `configuration`; of GPU kernels `bytes` read and written, `flops` and `modelled_seconds`:
    the GPU's roofline for these, not a measurement, None where the GPU's limits aren't known.
    """

    path: str
    backend: str
    reason: str
    tokens: int
    configuration: str | None = None
    bytes: int | None = None
    flops: int | None = None
    modelled_seconds: float | None = None

    def __str__(self) -> str:
        lines = [f"{self.tokens} tokens: {self.path} on {self.backend} ({self.reason})"]
        if self.configuration is not None:
            lines.append(f"  {self.configuration}")
        if self.bytes is not None and self.flops is not None:
            time = "" if self.modelled_seconds is None else f", {self.modelled_seconds * 1e6:.1f} µs (modelled)"
            lines.append(f"  {self.bytes / 1e6:.2f} MB, {self.flops / 1e9:.3f} GFLOP{time}")
        return "\n".join(lines)


def explain(layer_or_weight: nn.Module | NF4Weight | torch.Tensor, M: int) -> Explanation:
    """What runs for `M` tokens in the weight's dtype.

    Raises TypeError for what lorafam has no path for, ValueError for a negative M.
    """
    if isinstance(M, bool) or not isinstance(M, int) or M < 0:
        raise ValueError(f"M: expected a number of tokens, got {M!r}")
    weight: torch.Tensor | NF4Weight | None
    why, rank = "", 0
    if isinstance(layer_or_weight, AdapterLayer):
        if layer_or_weight.merged or not layer_or_weight.enabled:
            state = "merged into" if layer_or_weight.merged else "disabled; only"
            return Explanation("base module", "torch", f"the adapter is {state} the base layer", M)
        if not layer_or_weight.has_active:
            active = layer_or_weight.active_adapter
            return Explanation("base module", "torch", f"the active adapter {active!r} isn't on this layer", M)
        weight, why = base_weight(layer_or_weight.base_layer)
        if isinstance(layer_or_weight.base_layer, nn.Embedding):
            return Explanation("base module + low rank", "torch", why, M)
        if weight is None:
            choice = selection.choose(layer_or_weight.A.device.type)
            return Explanation("base module + low rank", choice.backend, why, M)
        rank = layer_or_weight.A.shape[0]
    elif hasattr(layer_or_weight, "lorafam_plan"):
        layer: Any = layer_or_weight  # of PEFT's, accelerated
        plan = layer.lorafam_plan()
        weight, why, rank = plan.weight, plan.reason, sum(layer.r[name] for name in plan.adapters)
        if not plan.adapters:
            return Explanation("PEFT's own code", "torch", why, M)
        if weight is None:
            choice = selection.choose(base_device(layer).type)
            return Explanation("base module + low rank", choice.backend, why, M)
    elif isinstance(layer_or_weight, NF4Linear):
        weight = layer_or_weight.weight
    elif isinstance(layer_or_weight, (NF4Weight, torch.Tensor)):
        weight = layer_or_weight
    else:
        raise TypeError(f"layer_or_weight: expected a lorafam layer or a weight, got {type(layer_or_weight).__name__}")
    choice = _choice(weight, M, rank)
    reason = f"{why}; {choice.reason}" if why else choice.reason
    product = _plan(weight, choice.backend, M, rank)
    return Explanation(product.path, choice.backend, reason, M, *product[1:])


def _plan(weight: torch.Tensor | NF4Weight, backend: str, tokens: int, rank: int) -> Plan:
    """What the backend runs."""
    if backend in ("triton", "simulate", "interpret"):
        from ..backends.triton_gpu.plan import plan

        layout = weight.layout if isinstance(weight, NF4Weight) else None
        shape = (weight.shape[0], weight.shape[1])
        return plan(tokens, shape, weight.nbytes, layout, weight.device, weight.dtype, rank)
    if backend == "numba":
        from ..backends.numba_cpu import dense_product, four_bit_product

        if isinstance(weight, torch.Tensor):
            return dense_product.plan(weight, tokens)
        return four_bit_product.plan(weight.storage(), tokens, weight.dtype)
    return Plan("dense" if isinstance(weight, torch.Tensor) else "dequantise, then multiply")


def _choice(weight: torch.Tensor | NF4Weight, tokens: int, rank: int) -> selection.Choice:
    """The backend of the product with this weight."""
    choice = selection.choose(weight.device.type)
    if choice.backend == "numba":
        return selection.unless_it_fails(choice, "lora_linear", weight.dtype, isinstance(weight, NF4Weight))
    if choice.backend != "triton":
        return choice
    from ..backends.triton_gpu.call_paths import product_path

    storage = weight.storage() if isinstance(weight, NF4Weight) else dense_storage(weight)
    path = product_path("lora_linear", tokens, weight.dtype, storage.data, storage.layout, rank)
    return selection.choose(weight.device.type, (path,))
