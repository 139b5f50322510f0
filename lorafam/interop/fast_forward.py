"""The forwards of PEFT's layers by lorafam's products, in PEFT's dtypes: the result has the dtype PEFT's has."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .. import functional as F
from ..ops.library import concatenated
from ..weights import NF4Weight
from .layer_plan import LayerPlan
from .norms import norm_of
from .report import FUSED
from .scalings import Scalings

Tensor = torch.Tensor
Parts = tuple[Tensor, Tensor, Tensor | float, Tensor | None]


def lora(layer: Any, plan: LayerPlan, x: Tensor) -> Tensor:
    """LoRA and rsLoRA; several active adapters are one of the sum of their ranks."""
    A, B, scale, bias = lora_parts(layer, plan)
    p, drops = _dropout(layer, plan.adapters[0])
    base = layer._modules["base_layer"]
    if plan.path == FUSED:
        total = added(getattr(base, "bias", None), bias)
        weight: Any = plan.weight
        return in_base_dtype(
            base, weight, x, lambda x: F.lora_linear(x, weight, A, B, scale, total, dropout_p=p, training=drops)
        )
    y = base(x)
    update = F.low_rank(x, A, B, scale, dropout_p=p, training=drops)
    return (y + (update if bias is None else update + bias)).to(y.dtype)


def lora_by_row(layer: Any, plan: LayerPlan, x: Tensor, adapter_names: Sequence[str]) -> Tensor:
    """LoRA and rsLoRA, each row of the batch with the adapter that it names, all in one product."""
    downs, ups = layer._modules["lora_A"], layer._modules["lora_B"]
    places = {name: place for place, name in enumerate(plan.adapters)}
    rows = torch.tensor([places.get(name, -1) for name in adapter_names], device=x.device)
    As, Bs = [downs[name].weight for name in plan.adapters], [ups[name].weight for name in plan.adapters]
    scales = [scale_of(layer, name, x.device) for name in plan.adapters]
    base = layer._modules["base_layer"]
    weight: Any = plan.weight
    bias = getattr(base, "bias", None)
    return in_base_dtype(base, weight, x, lambda x: F.grouped_lora_linear(x, weight, As, Bs, scales, bias, rows=rows))


def dora(layer: Any, plan: LayerPlan, x: Tensor) -> Tensor:
    """DoRA, dropout on both paths as PEFT has it, no gradient through the norm."""
    name = plan.adapters[0]
    A, B, scale, _ = lora_parts(layer, plan)
    p, drops = _dropout(layer, name)
    magnitude = layer._modules["lora_magnitude_vector"][name].weight
    base = layer._modules["base_layer"]
    bias = getattr(base, "bias", None)
    norm = norm_of(layer, name, plan.weight, A, B, scale)
    if plan.path == FUSED:
        weight: Any = plan.weight
        return in_base_dtype(
            base,
            weight,
            x,
            lambda x: F.dora_linear(
                x,
                weight,
                A,
                B,
                magnitude,
                scale,
                bias,
                dropout_p=p,
                dora_dropout="input",
                training=drops,
                norm=norm,
            ),
        )
    y = base(x)
    product = F.low_rank(x, A, B, scale) + (y if bias is None else y - bias)
    product = product * (magnitude / norm)
    return (product if bias is None else product + bias).to(y.dtype)


def adalora(layer: Any, plan: LayerPlan, x: Tensor) -> Tensor:
    """AdaLoRA."""
    A, B, scale, _ = adalora_parts(layer, plan)
    p, drops = _dropout(layer, plan.adapters[0])
    base = layer._modules["base_layer"]
    if plan.path == FUSED:
        bias = getattr(base, "bias", None)
        weight: Any = plan.weight
        return in_base_dtype(
            base, weight, x, lambda x: F.lora_linear(x, weight, A, B, scale, bias, dropout_p=p, training=drops)
        )
    y = base(x)
    update = F.low_rank(x, A, B, scale, dropout_p=p, training=drops)
    return (y + update).to(y.dtype)


def adalora_parts(layer: Any, plan: LayerPlan) -> Parts:
    """A [r, K], B [N, r] and a scale a rank; AdaLoRA's layers have no bias of their own."""
    name = plan.adapters[0]
    A, E, B = (layer._modules[part]._parameters[name] for part in ("lora_A", "lora_E", "lora_B"))
    rank_num = layer._modules["ranknum"]._parameters[name]
    return A, B, F.adalora_scale(E, scale_of(layer, name, A.device), rank_num), None


def lora_parts(layer: Any, plan: LayerPlan) -> Parts:
    """A [r, K], B [N, r], the scaling (a value a rank where there are several adapters) and lora_B's scaled bias."""
    downs, ups = layer._modules["lora_A"], layer._modules["lora_B"]
    parts = []
    for name in plan.adapters:
        A, up = downs[name].weight, ups[name]
        scale = scale_of(layer, name, A.device)
        parts.append((A, up.weight, scale, None if up.bias is None else up.bias * scale))
    if len(parts) == 1:
        return parts[0]
    bias: Tensor | None = None
    for *_, own in parts:
        bias = added(bias, own)
    scales = [torch.as_tensor(scale, device=A.device).expand(A.shape[0]) for A, _, scale, _ in parts]
    As, Bs = [part[0] for part in parts], [part[1] for part in parts]
    return concatenated(As), concatenated(Bs, 1), torch.cat(scales), bias


def scale_of(layer: Any, name: str, device: torch.device) -> Tensor | float:
    """An adapter's scaling; a float where somebody put a plain dict there, as PEFT's helpers do for a while."""
    scaling = layer.scaling
    return scaling.tensor(name, device) if isinstance(scaling, Scalings) else scaling[name]


def _dropout(layer: Any, name: str) -> tuple[float, bool]:
    dropout = layer._modules["lora_dropout"][name]
    return (0.0, False) if type(dropout) is nn.Identity else (dropout.p, dropout.training)


def added(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of what is there."""
    return b if a is None else a if b is None else a + b


def in_base_dtype(base: nn.Module, weight: Any, x: Tensor, product: Callable[[Tensor], Any]) -> Any:
    """`product(x)` as bitsandbytes computes: in the layer's compute dtype, also under autocast, rounded to x's."""
    if not isinstance(weight, NF4Weight):
        return product(x)
    on = torch.is_autocast_enabled(x.device.type)
    with torch.autocast(x.device.type, enabled=False) if on else contextlib.nullcontext():
        y = product(x.to(getattr(base, "compute_dtype", None) or x.dtype))
        return tuple(one.to(x.dtype) for one in y) if isinstance(y, tuple) else y.to(x.dtype)
