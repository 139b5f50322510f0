"""The products in plain PyTorch: the slow path for any device, one statement per formula of `ops`."""

from __future__ import annotations

import torch

from ...ops.by_storage import Storage
from ...ops.library import accumulate_dtype
from ...ops.lora_linear_group import members
from ...reference.dropout import dropout_mask
from .four_bit import dequantize_4bit

Tensor = torch.Tensor


def dense_weight(weight: Storage, dtype: torch.dtype) -> Tensor:
    """W [N, K] in `dtype`."""
    return weight.data.to(dtype) if weight.is_dense else dequantize_4bit(*weight, dtype)


def dropout(x: Tensor, seed: Tensor, dropout_p: float) -> Tensor:
    """drop(x)."""
    dtype = accumulate_dtype(x.dtype)
    mask = dropout_mask(seed, x.shape[0], x.shape[1], dropout_p, dtype=dtype, device=x.device)
    return (x.to(dtype) * mask).to(x.dtype)


def _dropped(x: Tensor, seed: Tensor | None, dropout_p: float, dtype: torch.dtype) -> Tensor:
    x = x.to(dtype)
    return x if seed is None else dropout(x, seed, dropout_p)


def lora_project(x: Tensor, A: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor:
    """P = drop(x) Aᵀ."""
    dtype = accumulate_dtype(x.dtype)
    return _dropped(x, seed, dropout_p, dtype) @ A.to(dtype).T


def lora_linear(
    x: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias."""
    dtype = accumulate_dtype(x.dtype)
    y = x.to(dtype) @ dense_weight(Storage(data, scales, layout), dtype).T
    if P is not None and B_hat is not None:
        y = y.addmm_(P.to(dtype), B_hat.to(dtype).T)
    if c is not None:
        y = y.mul_(c)
    if bias is not None:
        y = y.add_(bias)
    return y.to(x.dtype)


def lora_linear_group(
    x: Tensor,
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> list[Tensor]:
    """Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i."""
    return [lora_linear(x, *member.arguments) for member in members(data, scales, layout, P, B_hat, bias)]


def lora_linear_grad(
    grad_y: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """dx = (G ∘ c) W + drop'(Q A)."""
    dtype = accumulate_dtype(grad_y.dtype)
    scaled = grad_y.to(dtype) if c is None else grad_y.to(dtype) * c
    dx = scaled @ dense_weight(Storage(data, scales, layout), dtype)
    if Q is not None and A is not None:
        dx = dx.add_(_dropped(Q.to(dtype) @ A.to(dtype), seed, dropout_p, dtype))
    return dx.to(grad_y.dtype)


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
    """Q = Gc B̂, dA = Qᵀ drop(x), dB̂ = Gcᵀ P, dm = Σ G ∘ (Y − bias) / m, dbias = Σ G."""
    dtype = accumulate_dtype(grad_y.dtype)
    grad = grad_y.to(dtype)
    scaled = grad if c is None else grad * c
    Q = scaled @ B_hat.to(dtype)
    dA = Q.T @ _dropped(x, seed, dropout_p, dtype)
    dB_hat = scaled.T @ P.to(dtype)
    dm = grad.new_empty(0)
    if y is not None and magnitude is not None:
        centred = y.to(dtype) if bias is None else y.to(dtype) - bias
        dm = (grad * centred).sum(0) / magnitude
    dbias = grad.sum(0) if needs_bias else grad.new_empty(0)
    return Q, dA, dB_hat, dm.to(dtype), dbias
