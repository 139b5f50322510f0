"""An output head's loss for each token, from x and a frozen W: the logits are never kept, nor as a whole formed."""

from __future__ import annotations

from typing import Any

import torch

from ..backends.undispatched import call
from ..ops.library import accumulate_dtype, in_dtype
from . import plain

Tensor = torch.Tensor


class LinearCrossEntropyFunction(torch.autograd.Function):
    """x [M, K], W [V, K], bias [V], targets [M] → losses [M] in the dtype of sums. Its gradient in x is formed in the
    forward, beside the loss, up to each token's factor.
    """

    @staticmethod
    def formula(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        """The forward in plain operations."""
        dtype = accumulate_dtype(x.dtype)
        bias = None if bias is None else in_dtype(bias, x.dtype)
        logits = torch.nn.functional.linear(x, in_dtype(weight, x.dtype), bias)
        return torch.nn.functional.cross_entropy(in_dtype(logits, dtype), target, reduction="none")

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
        losses, dx = call("linear_cross_entropy", x, weight, bias, target, ctx.needs_input_grad[0])
        ctx.save_for_backward(x, weight, bias, target, dx)
        return losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, target, dx = ctx.saved_tensors
        if plain.is_differentiated_again(grad):
            inputs = x, weight, bias, target
            return plain.gradients(LinearCrossEntropyFunction.formula, inputs, (grad,), ctx.needs_input_grad)
        return in_dtype(dx * grad[:, None], x.dtype), None, None, None
