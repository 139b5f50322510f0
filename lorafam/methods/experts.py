"""Low-rank updates of a mixture's [E, N, K] weights, grouped over experts: no copy of all experts' weights is formed.

Tokens are sorted by expert once, and each projection is three grouped products: x W_eᵀ + s (x A_eᵀ) B_eᵀ, W as it is.
For transformers' experts modules that say how they compute (`use_experts_implementation`): routed tokens, gate, weights
[E, N, K] or transposed, biases or none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..compat.transformers import Experts
from ..functional.grouped import aligned, expert_product, sorted_by_expert
from ..ops.by_storage import FLOAT_DTYPES
from .base_weight import has_hooks

Tensor = torch.Tensor
# A [E, r, K] and s B [E, N, r]
Factors = tuple[Tensor, Tensor]


def why_not_grouped(experts: Any, told: Experts | None) -> str | None:
    """Why an experts module must compute by itself; None where its products can be grouped."""
    if told is None:
        return f"{type(experts).__name__} doesn't say how its experts compute"
    if told.is_expert_parallel or has_hooks(experts):
        return "hooks on the experts, or experts on other devices"
    if torch.is_autocast_enabled(next(experts.parameters()).device.type):
        return "autocast"
    return None


def why_not_for(weights: list[Any], x: Tensor | None) -> str | None:
    """Why the weights of an experts module, or tokens x, can't be grouped."""
    if any(type(weight) is not nn.Parameter or weight.ndim != 3 or weight.requires_grad for weight in weights):
        return "the experts' weights are trained, parametrised or not [E, N, K]"
    if any(weight.dtype not in FLOAT_DTYPES or not aligned(weight) for weight in weights):
        return "the experts' weights have a dtype or sizes that grouped products don't take"
    if x is not None and (x.dtype != weights[0].dtype or x.ndim != 2):
        return f"the input is {x.dtype} {list(x.shape)}, the weights {weights[0].dtype}"
    return None


def grouped_forward(
    experts: Any, told: Experts, factors: Mapping[str, Factors], x: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """x [T, H], experts and weights [T, k] of each token → Σ over its experts [T, H]; `factors` by projection."""
    chosen = top_k_index.reshape(-1)
    order, ends = sorted_by_expert(chosen, told.num_experts)
    first, last = told.projections

    def project(x: Tensor, name: str) -> Tensor:
        weight = getattr(experts, name)
        weight = weight.transpose(1, 2) if told.is_transposed else weight
        y = expert_product(x, weight, factors.get(name), ends)
        return y + getattr(experts, f"{name}_bias")[chosen[order]] if told.has_bias else y

    hidden = project(x[order // top_k_index.shape[-1]], first)
    y = project(experts._apply_gate(hidden) if told.has_gate else experts.act_fn(hidden), last)
    if told.has_post_expert_norm:
        y = experts.post_expert_norm(y)
    y = y * top_k_weights.reshape(-1)[order].unsqueeze(-1)
    return y[order.argsort()].view(*top_k_index.shape, -1).sum(1).to(x.dtype)


def expert_factors(A: Tensor, B: Tensor, scale: Tensor | float, experts: int) -> Factors:
    """Of PEFT's A [E r, K], whose experts come first, and B [N, r E], whose ranks do."""
    scaled = B.view(B.shape[0], -1, experts).permute(2, 0, 1) * scale
    return A.view(experts, -1, A.shape[1]), scaled.to(B.dtype)
