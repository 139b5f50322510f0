"""How a merged weight is stored: the formats by name, rounding to one, and the base module that carries it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..config import check_choice
from ..weights import NF4Weight, quantize_nf4
from .base_weight import holds_codes, own_weight
from .conv1d import is_conv1d, new_conv1d, stands_for_conv1d
from .nf4_linear import NF4Linear

Tensor = torch.Tensor

DENSE = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
FORMATS = ("same", "nf4", *DENSE)
_NAMES = {dtype: name for name, dtype in DENSE.items()} | {torch.float64: "fp64"}


class StoredFormat(NamedTuple):
    """`quant_type` is None for a dense weight of `dtype`; a 4-bit one is rounded to `dtype` before it is quantised."""

    name: str
    dtype: torch.dtype
    quant_type: str | None = None
    block_size: int = 64
    double_quant: bool = True


def merged_format(into: str, weight: Tensor | NF4Weight) -> StoredFormat:
    """The format that `into` means for a base that has `weight`. Raises ValueError for an unknown name."""
    check_choice("into", into, FORMATS)
    if into in DENSE:
        return StoredFormat(into, DENSE[into])
    if isinstance(weight, NF4Weight):
        kind = weight.quant_type if into == "same" else into
        return StoredFormat(kind, weight.dtype, kind, weight.block_size, weight.double_quant)
    if into == "same":
        return StoredFormat(_NAMES.get(weight.dtype, str(weight.dtype)), weight.dtype)
    return StoredFormat(
        into, weight.dtype if weight.dtype in _NAMES and weight.dtype.itemsize < 8 else torch.float32, into
    )


def same_format(form: StoredFormat, weight: Tensor | NF4Weight) -> bool:
    """Whether `weight` is stored so already."""
    if isinstance(weight, NF4Weight):
        return form.quant_type == weight.quant_type
    return form.quant_type is None and form.dtype == weight.dtype


def in_format(weight: Tensor, form: StoredFormat) -> Tensor | NF4Weight:
    """A weight [N, K] in the format's dtype, quantised where the format is."""
    if form.quant_type is None:
        return weight
    return quantize_nf4(weight, form.block_size, form.double_quant, quant_type=form.quant_type)


def decoded(weight: Tensor | NF4Weight) -> Tensor:
    """W [N, K] in fp32, fp64 for an fp64 one."""
    if isinstance(weight, NF4Weight):
        return weight.dequantize(torch.float32)
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def rows_of(weight: Tensor | NF4Weight) -> Tensor:
    """W [N, K] to be read a few rows at a time: a dense one as it is, without a copy."""
    return weight if isinstance(weight, Tensor) else decoded(weight)


def turned(base: nn.Module, weight: Any) -> Any:
    """W [N, K] of a weight as the base stores it, and the other way round."""
    return weight.T if isinstance(weight, Tensor) and (is_conv1d(base) or isinstance(base, nn.Embedding)) else weight


def stored_weight(base: nn.Module) -> nn.Parameter | NF4Weight | None:
    """What a base stores as its weight; None where that isn't a parameter of its own (it is parametrised, say)."""
    return own_weight(base) if holds_codes(base) else base._parameters.get("weight")  # type: ignore[return-value]


def put_weight(base: nn.Module, weight: Tensor | NF4Weight) -> None:
    """Gives a base another weight of the same format. Of a dense one it is a new parameter: embeddings may share the
    old one with an output head.
    """
    if isinstance(weight, Tensor):
        old: Any = base.weight
        new = turned(base, weight)
        # no update: what shares it goes on sharing it
        if not torch.equal(new, old):
            base.weight = nn.Parameter(new.contiguous(), requires_grad=old.requires_grad)
    elif isinstance(base, NF4Linear):
        base.weight = weight
    else:
        base.weight = weight.to_bitsandbytes()


def with_weight(base: nn.Module, weight: Tensor | NF4Weight, bias: Tensor | None) -> nn.Module:
    """A frozen layer in `base`'s place: an `NF4Linear` for a 4-bit weight, for a dense one an nn.Linear, or the Conv1D
    that the model has there.
    """
    if isinstance(weight, NF4Weight):
        return NF4Linear(weight, bias, base if stands_for_conv1d(base) else None).train(base.training)
    if stands_for_conv1d(base):
        return new_conv1d(weight, bias).train(base.training)
    out_features, in_features = weight.shape
    layer = nn.Linear(in_features, out_features, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer.train(base.training)
