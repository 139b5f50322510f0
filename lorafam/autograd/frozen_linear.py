"""y = x Wᵀ + bias with a frozen W: only x and bias have gradients, and W in float is never kept for the backward."""

from __future__ import annotations

from typing import Any

import torch

from ..backends.undispatched import call
from ..ops.by_storage import Storage
from ..ops.library import in_dtype
from . import plain

Tensor = torch.Tensor


class FrozenLinearFunction(torch.autograd.Function):
    """Saves the weight's own storage (codes or dense) and nothing else."""

    @staticmethod
    def formula(x: Tensor, bias: Tensor | None, data: Tensor, layout: tuple[int, ...], *block_scales: Tensor) -> Tensor:
        """The forward in plain operations."""
        y = plain.frozen_product(x, Storage(data, [*block_scales], [*layout]))
        return in_dtype(y if bias is None else y + bias, x.dtype)

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, data: Tensor, layout: tuple[int, ...], *block_scales: Tensor
    ) -> Tensor:
        ctx.layout = layout
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(data, *block_scales)
        return call("lora_linear", x, data, block_scales, layout, None, None, None, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        data, *block_scales = ctx.saved_tensors
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            inputs = (grad_y, data, ctx.layout, *block_scales)
            if not plain.is_differentiated_again(grad_y):
                dx = _grad(*inputs)
            else:
                vectorised = plain.is_vectorised(grad_y)
                dx = (
                    _FrozenLinearGradFunction.formula(*inputs)
                    if vectorised
                    else _FrozenLinearGradFunction.apply(*inputs)
                )
        if ctx.needs_input_grad[1]:
            dbias = grad_y.sum(0, dtype=torch.promote_types(grad_y.dtype, torch.float32)).to(ctx.bias_dtype)
        return dx, dbias, None, None, *(None for _ in block_scales)


def _grad(grad_y: Tensor, data: Tensor, layout: tuple[int, ...], *block_scales: Tensor) -> Tensor:
    return call("lora_linear_grad", grad_y, data, block_scales, layout, None, None, None, None, 0.0)


class _FrozenLinearGradFunction(torch.autograd.Function):
    """dx = G W, whose own gradient is Y's product: derivatives of any order."""

    @staticmethod
    def formula(grad_y: Tensor, data: Tensor, layout: tuple[int, ...], *block_scales: Tensor) -> Tensor:
        """The forward in plain operations."""
        return grad_y @ plain.dense_weight(Storage(data, [*block_scales], [*layout]), grad_y.dtype)

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, data: Tensor, layout: tuple[int, ...], *block_scales: Tensor) -> Tensor:
        ctx.layout = layout
        ctx.save_for_backward(data, *block_scales)
        return _grad(grad_y, data, layout, *block_scales)

    @staticmethod
    def backward(ctx: Any, grad_dx: Tensor) -> tuple[Tensor | None, ...]:
        data, *block_scales = ctx.saved_tensors
        grad_y = plain.applied(FrozenLinearFunction, grad_dx, None, data, ctx.layout, *block_scales)
        return grad_y, None, None, *(None for _ in block_scales)
