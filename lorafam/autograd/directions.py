"""Forward and backward of an adapted product, as LoRA and DoRA share them: in one piece where the CPU backend has it,
else op by op. Nothing is recorded.

    P = drop(x) Aᵀ    Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias    B̂ = B ∘ scale
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..backends.undispatched import as_one, call, together
from ..ops.adapted import Adapted, Needs, check_adapted
from ..ops.by_storage import check_storage
from ..ops.checks import check_tokens
from ..ops.library import in_dtype
from .scaled_factor import scaled, scaled_grads

Tensor = torch.Tensor


def forward(x: Tensor, adapted: Adapted, seed: Tensor | None, dropout_p: float) -> tuple[Tensor, Tensor]:
    """Y [M, N] in x's dtype and P [M, r]."""
    whole = together(x, seed, *adapted[:-1], *adapted.weight[:-1])
    if whole is not None and whole.suits_forward(x, adapted):
        check_adapted(adapted, x)
        return whole.forward(x, adapted, seed, dropout_p)
    return as_one("forward", _by_ops, x, adapted, seed, dropout_p)


def _by_ops(x: Tensor, adapted: Adapted, seed: Tensor | None, dropout_p: float) -> tuple[Tensor, Tensor]:
    A, B, scale, c, bias, weight = adapted
    P = call("lora_project", x, A, seed, dropout_p)
    return call("lora_linear", x, *weight, P, scaled(B, scale), c, bias), P


class Gradients(NamedTuple):
    """In the dtypes of what they are the gradients of, None where not asked for; dm and dbias in that of sums, and
    anything where not asked for.
    """

    dx: Tensor | None
    dA: Tensor
    dB: Tensor | None
    dscale: Tensor | None
    dm: Any
    dbias: Any


def backward(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    adapted: Adapted,
    seed: Tensor | None,
    dropout_p: float,
    needs: Needs,
    y: Tensor | None = None,
    magnitude: Tensor | None = None,
) -> Gradients:
    """The gradients for grad_y [M, N]; dm = Σ G ∘ (Y − bias) / m where y and m are given, dbias = Σ G."""
    whole = together(grad_y, x, P, seed, y, *adapted[:-1], *adapted.weight[:-1])
    if whole is None or grad_y.dtype != x.dtype or not whole.suits(x, adapted, P):
        return as_one("backward", _backward_by_ops, grad_y, x, P, adapted, seed, dropout_p, needs, y, magnitude)
    A, B, scale, c, _, weight = adapted
    check_storage(*weight)
    check_tokens("grad_y", grad_y, weight.shape[0], weight.data.device)
    Q, dx, dA, dB, sums, sums_y = whole.backward(grad_y, x, P, adapted, y, seed, dropout_p, needs)
    dscale = None
    if needs.scale:
        dB, dscale = scaled_grads(dB, B, scale, needs.B, True)
    dm = None if sums_y is None or magnitude is None else in_dtype(sums_y / magnitude, torch.float32)
    if needs.x and dx is None:
        dx = call("lora_linear_grad", grad_y, *weight, c, Q, A, seed, dropout_p)
    return Gradients(dx, dA, dB, dscale, dm, sums)


def _backward_by_ops(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    adapted: Adapted,
    seed: Tensor | None,
    dropout_p: float,
    needs: Needs,
    y: Tensor | None,
    magnitude: Tensor | None,
) -> Gradients:
    A, B, scale, c, bias, weight = adapted
    Q, dA, dB_hat, dm, sums = call(
        "lora_factors_grad", grad_y, x, P, scaled(B, scale), c, y, bias, magnitude, seed, dropout_p, needs.bias
    )
    dB, dscale = scaled_grads(dB_hat, B, scale, needs.B, needs.scale)
    dx = call("lora_linear_grad", grad_y, *weight, c, Q, A, seed, dropout_p) if needs.x else None
    return Gradients(dx, in_dtype(dA, A.dtype), dB, dscale, dm, sums)
