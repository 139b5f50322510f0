"""B̂ = B ∘ scale: the up factor as the ops take it, from the parameter B [N, r] and a scale, which is a number, a
0-dimensional tensor (LoRA, DoRA), or one value a rank [r] (AdaLoRA).

The Functions form B̂ anew in the backward: kept, it would be r/M of the output's size for every layer of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..compat.torch import foreach_mul
from ..ops.library import accumulate_dtype, in_dtype

Tensor = torch.Tensor
Scale = float | Tensor


def scaled(B: Tensor, scale: Scale) -> Tensor:
    """B̂ [N, r] in fp32 (fp64 for an fp64 B)."""
    return in_dtype(B, accumulate_dtype(B.dtype)) * scale


def all_scaled(Bs: Sequence[Tensor], scales: Sequence[Scale]) -> list[Tensor]:
    """B̂ of each: in one launch on a GPU, where scales are numbers."""
    if any(isinstance(scale, Tensor) for scale in scales):
        return [scaled(B, scale) for B, scale in zip(Bs, scales, strict=True)]
    return list(foreach_mul([in_dtype(B, accumulate_dtype(B.dtype)) for B in Bs], [*scales]))  # type: ignore[list-item]


def as_saved(scale: Scale) -> tuple[float | None, Tensor | None]:
    """(the number, the tensor): one of them is None. The tensor goes into `save_for_backward`, the number onto ctx."""
    return (None, scale) if isinstance(scale, Tensor) else (scale, None)


def all_scaled_grads(
    dB_hats: Sequence[Tensor],
    Bs: Sequence[Tensor],
    scales: Sequence[Scale],
    needs_b: Sequence[bool],
    needs_scale: Sequence[bool],
) -> list[tuple[Tensor | None, Tensor | None]]:
    """`scaled_grads` of each: in one launch on a GPU, where scales are numbers and all B have gradients."""
    if any(isinstance(scale, Tensor) for scale in scales) or not all(needs_b):
        return [*map(scaled_grads, dB_hats, Bs, scales, needs_b, needs_scale)]
    found = foreach_mul([*dB_hats], [*scales])  # type: ignore[list-item]
    return [(in_dtype(dB, B.dtype), None) for dB, B in zip(found, Bs, strict=True)]


def scaled_grads(
    dB_hat: Tensor, B: Tensor, scale: Scale, needs_b: bool, needs_scale: bool
) -> tuple[Tensor | None, Tensor | None]:
    """(dB, dscale) in their own dtypes; None where not needed."""
    dB = in_dtype(dB_hat * scale, B.dtype) if needs_b else None
    dscale = None
    if needs_scale and isinstance(scale, Tensor):
        product = dB_hat * B
        dscale = (product.sum(0) if scale.ndim else product.sum()).to(scale.dtype)
    return dB, dscale
