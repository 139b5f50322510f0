"""PEFT's `target_parameters` on the experts of a mixture: low-rank updates of [E, N, K] weights, grouped over experts.

PEFT adds s B_e A_e to all experts' weights in every forward, and autograd forms a gradient of that size
(`methods.experts`: what is done instead).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..compat.transformers import Experts, experts_of
from ..methods.base_weight import has_hooks
from ..methods.experts import expert_factors, grouped_forward, why_not_for, why_not_grouped
from .fast_forward import scale_of
from .layer_plan import PLAIN, LayerPlan, transformed, without_adapter
from .report import FUSED, PEFT

Tensor = torch.Tensor


def experts_plan(layer: Any, x: Tensor | None = None) -> LayerPlan:
    """The plan of the outermost `ParamWrapper` of an experts module."""
    wrappers, experts = _chain(layer)
    told = experts_of(experts)
    reason = why_not_grouped(experts, told)
    if told is None or reason is not None:
        return LayerPlan(PEFT, str(reason))
    if transformed():
        return LayerPlan(PEFT, PLAIN)
    for wrapper in wrappers:
        name = wrapper.parameter_name
        problem = _problem(wrapper, _active(wrapper), told)
        if problem is not None:
            return problem._replace(reason=f"{name}: {problem.reason}")
    reason = why_not_for([getattr(experts, name) for name in told.projections], x)
    if reason is not None:
        return LayerPlan(PEFT, reason)
    names = ", ".join(wrapper.parameter_name for wrapper in wrappers)
    reason = f"experts' {names}: updates grouped over experts; PEFT's way under autocast and in a compiled graph"
    return LayerPlan(FUSED, reason, _active(wrappers[0]))


def experts_forward(layer: Any, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """x [T, H], experts and weights [T, k] of each token → Σ over its experts [T, H]."""
    wrappers, experts = _chain(layer)
    told = experts_of(experts)
    assert told is not None, "asked for without `experts_plan`"
    factors = {}
    for wrapper in wrappers:
        (name,) = _active(wrapper)
        A, B = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
        factors[wrapper.parameter_name] = expert_factors(A, B, scale_of(wrapper, name, B.device), told.num_experts)
    return grouped_forward(experts, told, factors, x, top_k_index, top_k_weights)


def _active(wrapper: Any) -> tuple[str, ...]:
    return tuple(name for name in wrapper.active_adapters if name in wrapper.lora_A)


def _problem(wrapper: Any, adapters: tuple[str, ...], told: Experts) -> LayerPlan | None:
    alone = without_adapter(wrapper, adapters)
    if alone is not None:
        return alone
    if wrapper.parameter_name not in told.projections:
        return LayerPlan(PEFT, "no projection of the experts")
    if len(adapters) > 1:
        return LayerPlan(PEFT, f"{len(adapters)} active adapters")
    if wrapper.num_experts != told.num_experts or wrapper.num_experts < 2:
        return LayerPlan(PEFT, "one expert")
    linears = [wrapper.lora_A[adapters[0]], wrapper.lora_B[adapters[0]]]
    if any(type(linear) is not nn.Linear or has_hooks(linear) for linear in linears):
        return LayerPlan(PEFT, "hooks on the adapter's modules, or modules of a class of their own")
    if any(type(linear.weight) is not nn.Parameter or linear.weight.ndim != 2 for linear in linears):
        return LayerPlan(PEFT, "sharded factors")
    return None


def _chain(layer: Any) -> tuple[list[Any], Any]:
    """The wrappers around an experts module, outermost first, and the module."""
    wrappers = []
    while hasattr(layer, "parameter_name"):
        wrappers.append(layer)
        layer = layer.base_layer
    return wrappers, layer
