"""The loss of a frozen output head."""

from __future__ import annotations

import torch

from ..autograd import LinearCrossEntropyFunction, applied
from ..backends.undispatched import call
from ..ops.by_storage import dense_storage
from ..ops.library import in_dtype
from .arguments import recorded, tokens_of

Tensor = torch.Tensor
REDUCTIONS = ("none", "mean", "sum")


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """`cross_entropy(linear(x, weight, bias), target)` without the logits, of which there may be hundreds of megabytes.

    x [M, K] or [..., K], frozen weight [V, K] and bias [V], target int64 [M] or [...]. Tokens whose target is
    `ignore_index` cost nothing. → the loss in fp32 (fp64 if x is); with reduction "none" [M], 0 for ignored tokens.
    Logits are formed in fp32 from x's and the weight's values as they are. Autocast has no say.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {', '.join(REDUCTIONS)}, got {reduction!r}")
    for name, frozen in (("weight", weight), ("bias", bias)):
        if frozen is not None and frozen.requires_grad:
            raise ValueError(f"{name}: expected a frozen one, got one that requires gradients (it would get none)")
    with torch.autocast(x.device.type, enabled=False):
        flat = tokens_of(x, dense_storage(weight))
    target = target.reshape(-1)
    if target.shape != flat.shape[:1]:
        raise ValueError(f"target: expected one for each of {flat.shape[0]} tokens, got {target.shape[0]}")
    kept = target != ignore_index
    if not target.is_cpu:
        # to leave tokens out, a GPU would have to be waited for
        losses = _losses(flat, weight, bias, target.where(kept, 0)).where(kept, 0)
    elif kept.all():
        losses = _losses(flat, weight, bias, target)
    else:
        places = kept.nonzero()[:, 0]
        few = _losses(flat[places], weight, bias, target[places])
        losses = few.new_zeros(target.shape).index_put((places,), few)
    if reduction == "none":
        return losses
    total = losses.sum()
    return total if reduction == "sum" else total / in_dtype(kept.sum(), total.dtype)


def _losses(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> Tensor:
    if recorded(x):
        return applied(LinearCrossEntropyFunction, x, weight, bias, target)
    losses, _ = call("linear_cross_entropy", x, weight, bias, target, False)
    return losses
