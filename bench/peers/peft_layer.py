"""PEFT's own layer for a case's base, on bitsandbytes' Linear4bit where that is NF4."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lorafam.weights import NF4Weight

from ..case import Case

Tensor = torch.Tensor


def make(case: Case) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """Its forward, and the adapter tensors in the order of `case.leaves()`."""
    layer, leaves = peft_layer(case)
    return lambda: layer(case.x), leaves


def peft_layer(case: Case) -> tuple[Any, list[Tensor]]:
    """The layer, in training, and its adapter tensors, which hold the case's values in the case's dtypes."""
    import bitsandbytes
    import peft

    weight = case.layer.base_layer.weight
    holder = nn.Sequential()
    if isinstance(weight, NF4Weight):
        base: Any = bitsandbytes.nn.Linear4bit(
            case.in_features, case.out_features, bias=False, compute_dtype=case.dtype
        )
        base.weight = weight.to_bitsandbytes()
        base.quant_state = base.weight.quant_state
        base.support_avx512bf16_for_cpu = False
        holder.is_loaded_in_4bit = True
    else:
        base = nn.Linear(case.in_features, case.out_features, bias=False)
        base.weight = nn.Parameter(weight, requires_grad=False)  # type: ignore[arg-type]
    holder.add_module("linear", base)
    if case.method == "adalora":
        config: Any = peft.AdaLoraConfig(
            init_r=case.rank, target_r=case.rank, lora_alpha=case.rank, total_step=1, target_modules=["linear"]
        )
    else:
        config = peft.LoraConfig(
            r=case.rank, lora_alpha=case.rank, use_dora=case.method == "dora", target_modules=["linear"]
        )
    layer: Any = peft.inject_adapter_in_model(config, holder).linear.train()
    if case.method == "adalora":
        leaves = [layer.lora_A["default"], layer.lora_E["default"], layer.lora_B["default"]]
    else:
        leaves = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        if case.method == "dora":
            leaves.append(layer.lora_magnitude_vector["default"].weight)
    for leaf, value in zip(leaves, case.leaves().values(), strict=True):
        # PEFT made them in the base's dtype
        leaf.data = value.detach().clone()
        leaf.requires_grad_()
    return layer, leaves
