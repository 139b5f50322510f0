"""The methods in PEFT's order of operations and casts: the "eager" that the ratio rule measures us against.

The same names and arguments as the rest of `reference`, but x and weight may be narrower than the adapter: the base
runs in their dtype, the low-rank path in the adapter's (the mask's too), and the sum returns to x's. It agrees with
PEFT 0.21 bit for bit. DoRA forms the dense update and its norm in the adapter's dtype, without a floor: a zero row
gives what PEFT gives.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from .adalora import RANK_NUM_EPSILON
from .dora import DoraDropout
from .low_rank_linear import dropped

nf4_linear = linear


def lora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """As `peft.tuners.lora.Linear`."""
    base = linear(x, weight, bias)
    x_d = dropped(x.to(A.dtype), mask)
    return (base + linear(linear(x_d, A), B) * scaling).to(base.dtype)


def adalora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    E: Tensor,
    B: Tensor,
    scaling: float,
    rank_num: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """As `peft.tuners.adalora.SVDLinear`."""
    base = linear(x, weight, bias)
    x_d = dropped(x.to(A.dtype), mask)
    return (base + (x_d @ (A * E).T @ B.T) * scaling / (rank_num + RANK_NUM_EPSILON)).to(base.dtype)


def dora_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    magnitude: Tensor,
    scaling: float,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    dora_dropout: DoraDropout = "adapter",
) -> Tensor:
    """As `peft.tuners.lora.dora`, whose dropout is "input"; "adapter" takes the base's product from the whole x."""
    base = linear(x, weight, bias)
    x_d = dropped(x.to(A.dtype), mask)
    wide_weight = weight.to(x_d.dtype)
    update = linear(linear(torch.eye(A.shape[1], dtype=A.dtype, device=A.device), A), B).T
    c = magnitude / torch.linalg.norm(wide_weight + scaling * update.detach(), dim=1).detach()
    if mask is not None and dora_dropout == "input":
        product = linear(x_d, wide_weight)
    else:
        product = base if bias is None else base - bias
    return (base + ((c - 1) * product + c * linear(linear(x_d, A), B) * scaling)).to(base.dtype)


def vera_linear(
    x: Tensor,
    weight: Tensor,
    A: Tensor,
    B: Tensor,
    d: Tensor,
    b: Tensor,
    bias: Tensor | None = None,
    *,
    mask: Tensor | None = None,
) -> Tensor:
    """As `peft.tuners.vera.Linear`."""
    base = linear(x, weight, bias)
    x_d = dropped(x.to(A.dtype), mask)
    return (base + b * linear(d * linear(x_d, A), B)).to(base.dtype)
