"""‖W + s B A‖ per output feature of a PEFT layer with DoRA.

Formed anew wherever A or B may be trained: no version counter tells that a fused optimiser or one of bitsandbytes wrote
into them. Kept for frozen factors in evaluation, until one of them, the weight or the scaling is another. Nothing is
kept of parameters that FSDP2 gathers: forming it anew is little beside that. Whoever asks for PEFT's `DoraCaching` gets
it: the norm is PEFT's, kept by PEFT.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import functional as F
from ..compat.peft import caches_dora_norms, dequantize_module_weight, forget_dora_norms, kept_dora_norm
from ..weights import NF4Weight
from .sharded import is_gathered

Tensor = torch.Tensor


class _Kept(NamedTuple):
    """A result and what it was made from: the tensors, so that no other can get their memory, and their versions."""

    tensors: tuple[Any, ...]
    versions: tuple[Any, ...]
    value: Tensor


class Norms:
    """What one layer keeps."""

    def __init__(self) -> None:
        self.norms: dict[str, _Kept] = {}
        self.squared: _Kept | None = None

    def __reduce__(self) -> Any:
        # a copy keeps nothing
        return Norms, ()

    def forget(self) -> None:
        """To be called where a weight is changed in place behind its version's back: PEFT's merging does."""
        self.norms.clear()
        self.squared = None


def norm_of(
    layer: Any, name: str, weight: Tensor | NF4Weight | None, A: Tensor, B: Tensor, scale: Tensor | float
) -> Tensor:
    """n [N] in fp32; `weight` None: what PEFT dequantises of the base layer."""
    if not layer.training and caches_dora_norms():
        return _peft_norm(layer, name)
    # as PEFT does in a forward without caching
    forget_dora_norms(layer._modules["lora_magnitude_vector"][name])
    kept: Norms = layer._lorafam.norms
    if is_gathered(layer):
        kept.forget()
        return _fresh(_weight(layer, weight), A, B, scale)
    keeps = not (
        layer.training or torch.is_grad_enabled() or A.requires_grad or B.requires_grad or torch.compiler.is_compiling()
    )
    if not keeps:
        kept.norms.pop(name, None)
        return _form(kept, _weight(layer, weight), A, B, scale)
    source = layer.get_base_layer().weight if weight is None else weight
    tensors, versions = (A, B, source), (layer.scaling[name], *map(_version, (A, B, source)))
    known = kept.norms.get(name)
    if known is not None and known.versions == versions and _same(known.tensors, tensors):
        return known.value
    value = _form(kept, _weight(layer, weight), A, B, scale)
    kept.norms[name] = _Kept(_held(tensors), versions, value)
    return value


@torch.no_grad()
def _peft_norm(layer: Any, name: str) -> Tensor:
    magnitude = layer.lora_magnitude_vector[name]
    norm = kept_dora_norm(magnitude, name)
    if norm is None:
        if name in layer.lora_embedding_A:
            A, B = layer.lora_embedding_A[name].T, layer.lora_embedding_B[name].T
        else:
            A, B = layer.lora_A[name], layer.lora_B[name]
        update = magnitude.get_lora_weight(lora_A=A, lora_B=B, adapter_name=name)
        weight = dequantize_module_weight(layer.get_base_layer()).to(update.dtype)
        norm = magnitude.get_weight_norm(weight, update, layer.scaling[name], adapter_name=name)
    return norm.to(torch.float32)


def _weight(layer: Any, weight: Tensor | NF4Weight | None) -> Tensor | NF4Weight:
    if weight is not None:
        return weight
    return dequantize_module_weight(layer.get_base_layer()).detach()


def _fresh(weight: Tensor | NF4Weight, A: Tensor, B: Tensor, scale: Tensor | float) -> Tensor:
    # an NF4Weight would keep its own
    squared = torch.ops.lorafam.squared_row_norm(*weight.storage()) if isinstance(weight, NF4Weight) else None
    return F.row_norm(weight, A, B, scale, weight_squared=squared)


def _form(kept: Norms, weight: Tensor | NF4Weight, A: Tensor, B: Tensor, scale: Tensor | float) -> Tensor:
    squared = None
    # a compiled graph can't ask for a version, and a weight that is decoded now is new each time
    if isinstance(weight, torch.nn.Parameter) and not torch.compiler.is_compiling():
        known = kept.squared
        if known is None or known.versions != (_version(weight),) or not _same(known.tensors, (weight,)):
            dtype = torch.promote_types(weight.dtype, torch.float32)
            squared = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=dtype).square()
            kept.squared = _Kept(_held((weight,)), (_version(weight),), squared)
        else:
            squared = known.value
    return F.row_norm(weight, A, B, scale, weight_squared=squared)


def _version(tensor: Tensor | NF4Weight) -> int:
    return 0 if isinstance(tensor, NF4Weight) or tensor.is_inference() else tensor._version


def _held(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    # an alias holds the memory; the parameter itself may get another
    return tuple(tensor if isinstance(tensor, NF4Weight) else tensor.detach() for tensor in tensors)


def _same(kept: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    return all(
        a is b if isinstance(b, NF4Weight) or isinstance(a, NF4Weight) else a.data_ptr() == b.data_ptr()
        for a, b in zip(kept, now, strict=True)
    )
