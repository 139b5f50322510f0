"""An output head's loss for each token: l = x Wᵀ + bias, loss_m = log Σ_v e^(l_mv) − l_m,target, and its gradient in x,
Σ_v softmax(l_m)_v w_v − w_target.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """losses [M] of x [M, K], weight [V, K], bias [V] and targets [M]."""
    logits = x @ weight.T if bias is None else x @ weight.T + bias
    return logits.logsumexp(1) - logits.gather(1, target[:, None])[:, 0]


def linear_cross_entropy_grad(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    """∂loss_m/∂x_m [M, K]."""
    logits = x @ weight.T if bias is None else x @ weight.T + bias
    return torch.softmax(logits, 1) @ weight - weight[target]
