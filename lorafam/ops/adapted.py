"""A frozen weight W [N, K] and its adapter as one value, which both directions of an adapted product go by:

P = drop(x) Aᵀ    Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias    B̂ = B ∘ scale
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .by_storage import Storage, check_storage
from .checks import check_tokens, check_vector

Tensor = torch.Tensor
# a number, as one of torch's too (LoRA, DoRA), or one value a rank [r] (AdaLoRA)
Scale = float | Tensor


class Adapted(NamedTuple):
    """A [r, K], B [N, r], its scale, c and bias [N] or None, and W as op arguments."""

    A: Tensor
    B: Tensor
    scale: Scale
    c: Tensor | None
    bias: Tensor | None
    weight: Storage


class Needs(NamedTuple):
    """Which inputs of an adapted product have a gradient."""

    x: bool
    A: bool
    B: bool
    scale: bool
    bias: bool


def check_adapted(adapted: Adapted, x: Tensor) -> None:
    """Raises ValueError or TypeError where W isn't a weight, or x [M, K], c or bias don't go with it."""
    weight = adapted.weight
    check_storage(*weight)
    out_features, in_features = weight.shape
    check_tokens("x", x, in_features, weight.data.device)
    check_vector("magnitude", adapted.c, out_features, weight.data.device)
    check_vector("bias", adapted.bias, out_features, weight.data.device)
