"""Y = x Wᵀ + drop(x) Aᵀ B̂ᵀ + bias with gradients for x, A, B̂ and bias (LoRA, arXiv 2106.09685; AdaLoRA through B̂).

Saved beyond parameters and codes: x, P = drop(x) Aᵀ [M, r] and the seed. The mask is regenerated.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor


class LoraLinear(torch.autograd.Function):
    """x [M, K], A [r, K], B̂ [N, r] → Y [M, N] in x's dtype."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        A: Tensor,
        B_hat: Tensor,
        bias: Tensor | None,
        seed: Tensor | None,
        dropout_p: float,
        data: Tensor,
        layout: tuple[int, ...],
        *scales: Tensor,
    ) -> Tensor:
        P = torch.ops.lorafam.lora_project(x, A, seed, dropout_p)
        ctx.dropout_p, ctx.layout = dropout_p, layout
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, P, A, B_hat, seed, data, *scales)
        return torch.ops.lorafam.lora_linear(x, data, scales, layout, P, B_hat, None, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        x, P, A, B_hat, seed, data, *scales = ctx.saved_tensors
        needs_x, needs_a, needs_b, needs_bias = ctx.needs_input_grad[:4]
        Q, dA, dB_hat, _, dbias = torch.ops.lorafam.lora_factors_grad(
            grad_y, x, P, B_hat, None, None, None, None, seed, ctx.dropout_p, needs_bias
        )
        dx = None
        if needs_x:
            dx = torch.ops.lorafam.lora_linear_grad(grad_y, data, scales, ctx.layout, None, Q, A, seed, ctx.dropout_p)
        return (
            dx,
            dA.to(A.dtype) if needs_a else None,
            dB_hat.to(B_hat.dtype) if needs_b else None,
            dbias.to(ctx.bias_dtype) if needs_bias else None,
            None,
            None,
            None,
            None,
            *(None for _ in scales),
        )
