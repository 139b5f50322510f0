"""Q = Gc B̂, dA = Qᵀ drop(x), dB̂ = Gcᵀ P, dm = Σ G ∘ (Y − bias) / m, dbias = Σ G, in fp32 (fp64 for fp64 G).

c scales the small factors instead of G: Gc B̂ = G (c ∘ B̂) and Gcᵀ P = c ∘ (Gᵀ P), so no [M, N] temporary is made.
"""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype
from .dropout import dropped
from .product import product

Tensor = torch.Tensor


@torch.no_grad()
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
    dtype = accumulate_dtype(grad_y.dtype)
    grad = grad_y.to(dtype)
    factor = B_hat.to(dtype)
    Q = product(grad, factor if c is None else factor * c.to(dtype).unsqueeze(1))
    # formed as its transpose: several times faster with few rows of output than with few columns
    dB_hat = product(P.to(dtype).T, grad).T.contiguous()
    if c is not None:
        dB_hat.mul_(c.unsqueeze(1))
    wide = x.to(dtype)
    dA = product(Q.T, wide if seed is None else dropped(wide, seed, dropout_p))
    sums = grad.sum(0) if needs_bias or (y is not None and bias is not None) else None
    dm = grad.new_empty(0)
    if y is not None and magnitude is not None:
        dm = (grad * (y.to(dtype) if bias is None else y.to(dtype) - bias)).sum(0) / magnitude
    dbias = sums if needs_bias and sums is not None else grad.new_empty(0)
    return Q, dA, dB_hat, dm.to(dtype), dbias
