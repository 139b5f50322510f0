"""PEFT's VeRA layers: which path, and the forward. B̂ = diag(b) B diag(d) of the first rows and columns of A and B."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import functional as F
from ..ops.by_storage import FLOAT_DTYPES
from .fast_forward import in_base_dtype
from .layer_plan import PLAIN, LayerPlan, drops, transformed, with_base, without_adapter
from .report import FUSED, PEFT

Tensor = torch.Tensor


def vera_plan(layer: Any, x: Tensor | None = None) -> LayerPlan:
    """As `layer_plan` for LoRA."""
    vectors = layer._modules["vera_lambda_d"]._parameters
    names = tuple(name for name in layer.active_adapters if name in vectors)
    alone = without_adapter(layer, names)
    if alone is not None:
        return alone
    if transformed():
        return LayerPlan(PEFT, PLAIN)
    if len(names) > 1:
        return LayerPlan(PEFT, f"{len(names)} active adapters that aren't plain LoRA")
    name = names[0]
    dropout = layer._modules["vera_dropout"][name]
    if type(dropout) not in (nn.Identity, nn.Dropout):
        return LayerPlan(PEFT, f"the dropout of {name} is a {type(dropout).__name__}")
    trained = [layer._modules[part]._parameters[name] for part in ("vera_lambda_d", "vera_lambda_b")]
    if any(type(one) is not nn.Parameter or one.dtype not in FLOAT_DTYPES for one in trained):
        return LayerPlan(PEFT, f"the vectors of {name} are sharded, of a class of their own or no floats")
    return with_base(layer, names, False, drops(dropout), x, trained[0].device)


def vera_forward(layer: Any, plan: LayerPlan, x: Tensor) -> Tensor:
    """Y in the dtype that PEFT's has."""
    name = plan.adapters[0]
    d, b = (layer._modules[part]._parameters[name] for part in ("vera_lambda_d", "vera_lambda_b"))
    A = layer.vera_A[name][:, : layer.in_features].to(d.device)
    B = b[:, None] * layer.vera_B[name][: layer.out_features].to(d.device)
    dropout = layer._modules["vera_dropout"][name]
    p, training = (0.0, False) if type(dropout) is nn.Identity else (dropout.p, dropout.training)
    base = layer._modules["base_layer"]
    if plan.path == FUSED:
        weight: Any = plan.weight
        bias = getattr(base, "bias", None)
        return in_base_dtype(
            base, weight, x, lambda x: F.lora_linear(x, weight, A, B, d, bias, dropout_p=p, training=training)
        )
    y = base(x)
    return (y + F.low_rank(x, A, B, d, dropout_p=p, training=training)).to(y.dtype)
