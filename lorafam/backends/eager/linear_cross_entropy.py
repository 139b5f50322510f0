"""An output head's loss in plain PyTorch, some tokens' logits at a time."""

from __future__ import annotations

import torch

from ...ops.library import accumulate_dtype

Tensor = torch.Tensor
# bytes of logits at a time
_LOGITS = 64 << 20


def linear_cross_entropy(
    x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, differentiates: bool
) -> tuple[Tensor, Tensor]:
    """losses [M], and dx [M, K] or [0, K]; logits are formed in x's dtype, all else in the sums' own."""
    dtype = accumulate_dtype(x.dtype)
    losses = x.new_empty(x.shape[0], dtype=dtype)
    dx = x.new_empty(x.shape if differentiates else (0, x.shape[1]), dtype=dtype)
    step = max(1, _LOGITS // (max(1, weight.shape[0]) * losses.element_size()))
    matrix, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    for first in range(0, x.shape[0], step):
        here = slice(first, first + step)
        logs = torch.nn.functional.linear(x[here], matrix, bias).to(dtype).log_softmax(-1)
        chosen = target[here, None]
        losses[here] = logs.gather(1, chosen)[:, 0].neg_()
        if differentiates:
            grad = logs.exp_()
            grad.scatter_add_(1, chosen, grad.new_full((), -1).expand_as(chosen))
            dx[here] = grad.to(x.dtype) @ matrix
    return losses, dx
