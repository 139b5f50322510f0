"""The formulae in plain PyTorch operations: what a Function is where its own backward doesn't do.

A Function's backward records nothing, and is neither vectorised nor differentiated forwards. Gradients of gradients
(`create_graph=True`), torch.func's transforms and forward-mode AD take the Function's `formula` instead: W decoded, and
kept by autograd, every step an operation that torch differentiates to any order. Said once, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..backends.selection import tell_of_detour
from ..compat.torch import is_batched_for_backward, is_transformed
from ..ops.adapted import Scale
from ..ops.by_storage import Storage
from ..ops.library import accumulate_dtype, in_dtype
from ..reference.dropout import dropout_mask
from .scaled_factor import scaled

Tensor = torch.Tensor
Formula = Callable[..., Any]

_TOLD = "lorafam computes in eager PyTorch, slowly: "
_AGAIN = f"{_TOLD}a gradient is differentiated again (create_graph=True)"
_TRANSFORMED = f"{_TOLD}a torch.func transform, forward-mode AD or a batch of gradients (is_grads_batched) is at work"


def applied(function: Any, *inputs: Any) -> Any:
    """`function.apply`, or its formula where a transform runs."""
    if not is_transformed():
        return function.apply(*inputs)
    tell_of_detour(_TRANSFORMED)
    with _autocast_off(inputs):
        return function.formula(*inputs)


def is_differentiated_again(*grads: Tensor | None) -> bool:
    """Whether a backward must be differentiable, or vectorised, itself. A compiled graph refuses that by itself."""
    if torch.compiler.is_compiling():
        return False
    return torch.is_grad_enabled() or is_vectorised(*grads)


def is_vectorised(*grads: Tensor | None) -> bool:
    """Whether a backward is for several gradients at once, or within a transform."""
    return is_transformed() or any(map(is_batched_for_backward, grads))


def gradients(
    formula: Formula, inputs: Sequence[Any], grads: Sequence[Tensor | None], needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The backward of a Function with these inputs as plain operations, for the gradients of its outputs."""
    again = torch.is_grad_enabled()
    tell_of_detour(_AGAIN if again else _TRANSFORMED)
    places = [place for place, need in enumerate(needs) if need]
    own = list(inputs)
    with torch.enable_grad(), _autocast_off(inputs):
        for place in places:
            # an input that was computed from another has a share of its own
            own[place] = inputs[place].view_as(inputs[place])
        outputs = formula(*own)
        asked = [
            (output, grad)
            for output, grad in zip(outputs if isinstance(outputs, tuple) else (outputs,), grads, strict=True)
            if grad is not None
        ]
        wanted = [own[place] for place in places]
        ys, dys = zip(*asked, strict=True)
        found = torch.autograd.grad(ys, wanted, dys, create_graph=again, allow_unused=True)
    result: list[Tensor | None] = [None] * len(inputs)
    for place, grad in zip(places, found, strict=True):
        result[place] = grad
    return tuple(result)


def _autocast_off(inputs: Sequence[Any]) -> torch.autocast:
    like = next(one for one in inputs if isinstance(one, Tensor))
    return torch.autocast(like.device.type, enabled=False)


def dense_weight(weight: Storage, dtype: torch.dtype) -> Tensor:
    """W [N, K] in a dtype."""
    return in_dtype(weight.data, dtype) if weight.is_dense else torch.ops.lorafam.dequantize_4bit(*weight, dtype)


def frozen_product(x: Tensor, weight: Storage) -> Tensor:
    """x Wᵀ [M, N], multiplied in x's dtype as eager does, in the dtype of sums."""
    return in_dtype(x @ dense_weight(weight, x.dtype).T, accumulate_dtype(x.dtype))


def dropped(x: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor:
    """drop(x) in the dtype of sums."""
    wide = in_dtype(x, accumulate_dtype(x.dtype))
    if seed is None:
        return wide
    return wide * dropout_mask(seed, x.shape[0], x.shape[1], dropout_p, dtype=wide.dtype, device=x.device)


def low_rank(x: Tensor, A: Tensor, B: Tensor, scale: Scale, seed: Tensor | None, dropout_p: float) -> Tensor:
    """drop(x) Aᵀ (B ∘ scale)ᵀ [M, N] in the dtype of sums."""
    wide = dropped(x, seed, dropout_p)
    return wide @ in_dtype(A, wide.dtype).T @ in_dtype(scaled(B, scale), wide.dtype).T
