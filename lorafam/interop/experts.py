"""PEFT's `target_parameters` on the experts of a mixture: low-rank updates of [E, N, K] weights, grouped over experts.

PEFT adds s B_e A_e to all experts' weights in every forward, and autograd forms a gradient of that size. Here tokens
are sorted by expert once, and each projection is three grouped products: x W_eᵀ + s (x A_eᵀ) B_eᵀ, W as it is.

For transformers' experts modules that say how they compute (`use_experts_implementation`): routed tokens, gate, weights
[E, N, K] or transposed, biases or none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..compat.transformers import Experts, experts_of
from ..functional.grouped import aligned, expert_product, sorted_by_expert
from ..methods.base_weight import has_hooks
from ..ops.by_storage import FLOAT_DTYPES
from .fast_forward import scale_of
from .report import FUSED, PEFT
from .way import PLAIN, Way, transformed, without_adapter

Tensor = torch.Tensor


def experts_way(layer: Any, x: Tensor | None = None) -> Way:
    """The way of the outermost `ParamWrapper` of an experts module."""
    wrappers, experts = _chain(layer)
    told = experts_of(experts)
    if told is None:
        return Way(PEFT, f"{type(experts).__name__} doesn't say how its experts compute")
    if told.is_expert_parallel or has_hooks(experts):
        return Way(PEFT, "hooks on the experts, or experts on other devices")
    if transformed():
        return Way(PEFT, PLAIN)
    if torch.is_autocast_enabled(next(experts.parameters()).device.type):
        return Way(PEFT, "autocast")
    for wrapper in wrappers:
        name = wrapper.parameter_name
        problem = _problem(wrapper, _active(wrapper), told)
        if problem is not None:
            return problem._replace(reason=f"{name}: {problem.reason}")
    weights = [getattr(experts, name) for name in told.projections]
    if any(type(weight) is not nn.Parameter or weight.ndim != 3 or weight.requires_grad for weight in weights):
        return Way(PEFT, "the experts' weights are trained, parametrised or not [E, N, K]")
    if any(weight.dtype not in FLOAT_DTYPES or not aligned(weight) for weight in weights):
        return Way(PEFT, "the experts' weights have a dtype or sizes that grouped products don't take")
    if x is not None and (x.dtype != weights[0].dtype or x.ndim != 2):
        return Way(PEFT, f"the input is {x.dtype} {list(x.shape)}, the weights {weights[0].dtype}")
    names = ", ".join(wrapper.parameter_name for wrapper in wrappers)
    reason = f"experts' {names}: updates grouped over experts; PEFT's way under autocast and in a compiled graph"
    return Way(FUSED, reason, _active(wrappers[0]))


def experts_forward(layer: Any, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """x [T, H], experts and weights [T, k] of each token → Σ over its experts [T, H]."""
    wrappers, experts = _chain(layer)
    told = experts_of(experts)
    assert told is not None, "asked for without `experts_way`"
    by_name = {wrapper.parameter_name: wrapper for wrapper in wrappers}
    chosen = top_k_index.reshape(-1)
    order, ends = sorted_by_expert(chosen, told.num_experts)
    first, last = told.projections

    def project(x: Tensor, name: str) -> Tensor:
        weight = getattr(experts, name)
        weight = weight.transpose(1, 2) if told.is_transposed else weight
        factors = None if name not in by_name else _factors(by_name[name], told.num_experts)
        y = expert_product(x, weight, factors, ends)
        return y + getattr(experts, f"{name}_bias")[chosen[order]] if told.has_bias else y

    hidden = project(x[order // top_k_index.shape[-1]], first)
    y = project(experts._apply_gate(hidden) if told.has_gate else experts.act_fn(hidden), last)
    if told.has_post_expert_norm:
        y = experts.post_expert_norm(y)
    y = y * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    return y[order.argsort()].view(*top_k_index.shape, -1).sum(1).to(x.dtype)


def _factors(wrapper: Any, experts: int) -> tuple[Tensor, Tensor]:
    """A [E, r, K] and s B [E, N, r] of PEFT's A [E r, K], whose experts come first, and B [N, r E], whose ranks do."""
    (name,) = _active(wrapper)
    A, B = wrapper.lora_A[name].weight, wrapper.lora_B[name].weight
    scaled = B.view(B.shape[0], -1, experts).permute(2, 0, 1) * scale_of(wrapper, name, B.device)
    return A.view(experts, -1, A.shape[1]), scaled.to(B.dtype)


def _active(wrapper: Any) -> tuple[str, ...]:
    return tuple(name for name in wrapper.active_adapters if name in wrapper.lora_A)


def _problem(wrapper: Any, adapters: tuple[str, ...], told: Experts) -> Way | None:
    alone = without_adapter(wrapper, adapters)
    if alone is not None:
        return alone
    if wrapper.parameter_name not in told.projections:
        return Way(PEFT, "no projection of the experts")
    if len(adapters) > 1:
        return Way(PEFT, f"{len(adapters)} active adapters")
    if wrapper.num_experts != told.num_experts or wrapper.num_experts < 2:
        return Way(PEFT, "one expert")
    linears = [wrapper.lora_A[adapters[0]], wrapper.lora_B[adapters[0]]]
    if any(type(linear) is not nn.Linear or has_hooks(linear) for linear in linears):
        return Way(PEFT, "hooks on the adapter's modules, or modules of a class of their own")
    if any(type(linear.weight) is not nn.Parameter or linear.weight.ndim != 2 for linear in linears):
        return Way(PEFT, "sharded factors")
    return None


def _chain(layer: Any) -> tuple[list[Any], Any]:
    """The wrappers around an experts module, outermost first, and the module."""
    wrappers = []
    while hasattr(layer, "parameter_name"):
        wrappers.append(layer)
        layer = layer.base_layer
    return wrappers, layer
