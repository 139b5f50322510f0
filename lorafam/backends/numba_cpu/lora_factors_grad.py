"""Q = Gc B̂, dA = Qᵀ drop(x), dB̂ = Gcᵀ P, dm = Σ G ∘ (Y − bias) / m, dbias = Σ G, in fp32 (fp64 for fp64 G).

c scales the small factors instead of G: Gc B̂ = G (c ∘ B̂) and Gcᵀ P = c ∘ (Gᵀ P), so no [M, N] temporary is made.
"""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype, in_dtype
from .dropout import dropped
from .factors import gradients
from .four_bit_product import as_read, single
from .processor import processor
from .product import product

Tensor = torch.Tensor


def lora_factors_grad(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    B_hat: Tensor,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    magnitude: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    if grad_y.dtype == torch.float64 or P.shape[1] == 0:
        return _by_products(grad_y, x, P, B_hat, c, y, bias, magnitude, seed, dropout_p, needs_bias)
    if seed is not None:
        x = dropped(x.to(torch.float32), seed, dropout_p)
    given = None if magnitude is None else y
    grad_y, x, given = as_read(grad_y), as_read(x), None if given is None else as_read(given)
    scale, offset = single(c), single(bias)
    (Q, dB_hat, sums, sums_y), dA = gradients(
        grad_y, x, single(P), single(B_hat), scale, given, offset, needs_bias, processor()
    )
    # an op's results are tensors apart
    dm = Q.new_empty(0) if sums_y is None or magnitude is None else in_dtype(sums_y / magnitude, torch.float32)
    return Q, dA, dB_hat, dm, Q.new_empty(0) if sums is None else sums


def _by_products(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    B_hat: Tensor,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    magnitude: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """By torch's products, for fp64 and for no rank at all."""
    dtype = accumulate_dtype(grad_y.dtype)
    grad, factor, wide = grad_y.to(dtype), B_hat.to(dtype), x.to(dtype)
    Q = product(grad, factor if c is None else factor * c.to(dtype).unsqueeze(1))
    dB_hat = product(grad.T, P.to(dtype))
    if c is not None:
        dB_hat.mul_(c.unsqueeze(1))
    dA = product(Q.T, wide if seed is None else dropped(wide, seed, dropout_p))
    dm = grad.new_empty(0)
    if y is not None and magnitude is not None:
        dm = (grad * (y.to(dtype) if bias is None else y.to(dtype) - bias)).sum(0) / magnitude
    return Q, dA, dB_hat, dm.to(dtype), grad.sum(0) if needs_bias else grad.new_empty(0)
