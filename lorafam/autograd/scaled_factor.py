"""B̂ = B ∘ scale: the up factor as the ops take it, from the parameter B [N, r] and a scale, which is a number, a
0-dimensional tensor (LoRA, DoRA), or one value a rank [r] (AdaLoRA).

The Functions form B̂ anew in the backward: kept, it would be r/M of the output's size for every layer of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..compat.torch import foreach_mul
from ..ops.adapted import Adapted, Scale
from ..ops.library import accumulate_dtype, in_dtype

Tensor = torch.Tensor


def scaled(B: Tensor, scale: Scale) -> Tensor:
    """B̂ [N, r] in fp32 (fp64 for an fp64 B)."""
    return in_dtype(B, accumulate_dtype(B.dtype)) * scale


def all_scaled(parts: Sequence[Adapted]) -> list[Tensor]:
    """B̂ of each: in one launch on a GPU, where scales are numbers."""
    numbers = _numbers(parts)
    if numbers is None:
        return [scaled(part.B, part.scale) for part in parts]
    return list(foreach_mul([in_dtype(part.B, accumulate_dtype(part.B.dtype)) for part in parts], numbers))


def _numbers(parts: Sequence[Adapted]) -> list[float] | None:
    """The scales, if all are numbers."""
    numbers = [part.scale for part in parts if not isinstance(part.scale, Tensor)]
    return numbers if len(numbers) == len(parts) else None


def as_saved(scale: Scale) -> tuple[float | None, Tensor | None]:
    """(the number, the tensor): one of them is None. The tensor goes into `save_for_backward`, the number onto ctx."""
    return (None, scale) if isinstance(scale, Tensor) else (scale, None)


def all_scaled_grads(
    dB_hats: Sequence[Tensor], parts: Sequence[Adapted], needs_b: Sequence[bool], needs_scale: Sequence[bool]
) -> list[tuple[Tensor | None, Tensor | None]]:
    """`scaled_grads` of each: in one launch on a GPU, where scales are numbers and all B have gradients."""
    numbers = _numbers(parts)
    if numbers is None or not all(needs_b):
        each = zip(dB_hats, parts, needs_b, needs_scale, strict=True)
        return [scaled_grads(dB_hat, part.B, part.scale, b, scale) for dB_hat, part, b, scale in each]
    return [
        (in_dtype(dB, part.B.dtype), None) for dB, part in zip(foreach_mul([*dB_hats], numbers), parts, strict=True)
    ]


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
