"""Forward and backward of an adapted product, as LoRA and DoRA share them: in one piece where the CPU backend has it,
else op by op. Nothing is recorded.

    P = drop(x) Aᵀ    Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias    B̂ = B ∘ scale
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..backends.direct import as_one, call, together
from ..ops.by_storage import check_storage, weight_shape
from ..ops.checks import check_tokens, check_vector
from ..ops.library import in_dtype
from .scaled_factor import Scale, scaled, scaled_grads

Tensor = torch.Tensor


def forward(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    data: Tensor,
    layout: Sequence[int],
    scales: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """Y [M, N] in x's dtype and P [M, r]."""
    whole = together(x, A, B, scale, c, bias, seed, data, scales)
    if whole is not None and whole.suits_forward(x, data, layout, A, B, scale, c, bias):
        check_storage(data, scales, layout)
        out_features, in_features = weight_shape(data, layout)
        check_tokens("x", x, in_features, data.device)
        check_vector("magnitude", c, out_features, data.device)
        check_vector("bias", bias, out_features, data.device)
        return whole.forward(x, A, B, scale, c, bias, data, scales, layout, seed, dropout_p)
    return as_one("forward", _by_ops, x, A, B, scale, c, bias, seed, dropout_p, data, layout, scales)


def _by_ops(
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    bias: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    data: Tensor,
    layout: Sequence[int],
    scales: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    P = call("lora_project", x, A, seed, dropout_p)
    return call("lora_linear", x, data, scales, layout, P, scaled(B, scale), c, bias), P


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
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    magnitude: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    data: Tensor,
    layout: Sequence[int],
    scales: Sequence[Tensor],
    *,
    needs_x: bool,
    needs_b: bool,
    needs_scale: bool,
    needs_bias: bool,
) -> Gradients:
    """The gradients for grad_y [M, N]; dm = Σ G ∘ (Y − bias) / m where y and m are given, dbias = Σ G."""
    whole = together(grad_y, x, P, A, B, scale, c, y, bias, seed, data, scales)
    if whole is None or grad_y.dtype != x.dtype or not whole.suits(x, data, layout, A, B, scale, c, bias, P):
        needs = needs_x, needs_b, needs_scale, needs_bias
        own = grad_y, x, P, A, B, scale, c, y, bias, magnitude, seed, dropout_p, data, layout, scales
        return as_one("backward", _backward_by_ops, *own, *needs)
    check_storage(data, scales, layout)
    check_tokens("grad_y", grad_y, weight_shape(data, layout)[0], data.device)
    Q, dx, dA, dB, sums, sums_y = whole.backward(
        grad_y,
        x,
        P,
        A,
        B,
        scale,
        c,
        y,
        bias,
        data,
        scales,
        layout,
        seed=seed,
        dropout_p=dropout_p,
        needs_x=needs_x,
        needs_sums=needs_bias,
        scales_db=not needs_scale,
    )
    dscale = None
    if needs_scale:
        dB, dscale = scaled_grads(dB, B, scale, needs_b, True)
    dm = None if sums_y is None or magnitude is None else in_dtype(sums_y / magnitude, torch.float32)
    if needs_x and dx is None:
        dx = call("lora_linear_grad", grad_y, data, scales, layout, c, Q, A, seed, dropout_p)
    return Gradients(dx, dA, dB, dscale, dm, sums)


def _backward_by_ops(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    A: Tensor,
    B: Tensor,
    scale: Scale,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    magnitude: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    data: Tensor,
    layout: Sequence[int],
    scales: Sequence[Tensor],
    needs_x: bool,
    needs_b: bool,
    needs_scale: bool,
    needs_bias: bool,
) -> Gradients:
    Q, dA, dB_hat, dm, sums = call(
        "lora_factors_grad", grad_y, x, P, scaled(B, scale), c, y, bias, magnitude, seed, dropout_p, needs_bias
    )
    dB, dscale = scaled_grads(dB_hat, B, scale, needs_b, needs_scale)
    dx = None
    if needs_x:
        dx = call("lora_linear_grad", grad_y, data, scales, layout, c, Q, A, seed, dropout_p)
    return Gradients(dx, in_dtype(dA, A.dtype), dB, dscale, dm, sums)
