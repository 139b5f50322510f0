"""Gradients of everything but x, from G = dY [M, N]; with Gc = G ∘ c:

    Q = Gc B̂ [M, r]     dB̂ = Gcᵀ P [N, r]     dA = Qᵀ drop(x) [r, K]
    dbias = Σ G [N]      dm = Σ G ∘ (Y − bias) / m [N], 0/0 where m = 0 (the caller recomputes those rows)

All in fp32 (fp64 for fp64 G). dm is empty ([0]) unless `y` and `magnitude` are given, dbias unless `needs_bias`.
"""

from __future__ import annotations

import torch

from .checks import check_dropout, check_factor, check_tokens, check_vector
from .library import accumulate_dtype, define


def _check(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    P: torch.Tensor,
    B_hat: torch.Tensor,
    c: torch.Tensor | None,
    y: torch.Tensor | None,
    bias: torch.Tensor | None,
    magnitude: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout_p: float,
    needs_bias: bool,
) -> None:
    device = grad_y.device
    check_factor("B", B_hat, (None, None), device)
    out_features, rank = B_hat.shape
    check_tokens("grad_y", grad_y, out_features, device)
    check_tokens("x", x, x.shape[-1], device)
    if x.shape[0] != grad_y.shape[0]:
        raise ValueError(f"x: expected {grad_y.shape[0]} tokens, as many as grad_y, got {x.shape[0]}")
    check_factor("P", P, (grad_y.shape[0], rank), device)
    for name, vector in (("c", c), ("bias", bias), ("magnitude", magnitude)):
        check_vector(name, vector, out_features, device)
    if (y is None) != (magnitude is None):
        raise ValueError("y, magnitude: expected both or neither")
    if y is not None and y.shape != grad_y.shape:
        raise ValueError(f"y: expected {list(grad_y.shape)}, the shape of grad_y, got {list(y.shape)}")
    check_dropout(seed, dropout_p, device)


def _fake(
    grad_y: torch.Tensor,
    x: torch.Tensor,
    P: torch.Tensor,
    B_hat: torch.Tensor,
    c: torch.Tensor | None,
    y: torch.Tensor | None,
    bias: torch.Tensor | None,
    magnitude: torch.Tensor | None,
    seed: torch.Tensor | None,
    dropout_p: float,
    needs_bias: bool,
) -> tuple[torch.Tensor, ...]:
    out_features, rank = B_hat.shape
    dtype = accumulate_dtype(grad_y.dtype)
    return (
        grad_y.new_empty((grad_y.shape[0], rank), dtype=dtype),
        grad_y.new_empty((rank, x.shape[1]), dtype=dtype),
        grad_y.new_empty((out_features, rank), dtype=dtype),
        grad_y.new_empty(out_features if y is not None else 0, dtype=dtype),
        grad_y.new_empty(out_features if needs_bias else 0, dtype=dtype),
    )


define(
    "lora_factors_grad",
    "(Tensor grad_y, Tensor x, Tensor P, Tensor B_hat, Tensor? c, Tensor? y, Tensor? bias, Tensor? magnitude, "
    "Tensor? seed, float dropout_p, bool needs_bias) -> (Tensor Q, Tensor dA, Tensor dB_hat, Tensor dm, Tensor dbias)",
    check=_check,
    fake=_fake,
)
