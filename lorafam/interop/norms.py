"""‖W + s B A‖ per output feature of a PEFT layer with DoRA.

Formed anew wherever gradients are on. Kept in evaluation without them, as long as A and B equal copies of what it was
formed of (`methods.kept_norm`). Nothing is kept of parameters that FSDP2 gathers: forming it anew is little beside
that. Whoever asks for PEFT's `DoraCaching` gets it: the norm is PEFT's, kept by PEFT.
"""

from __future__ import annotations

from typing import Any

import torch

from .. import functional as F
from ..compat.peft import caches_dora_norms, dequantize_module_weight, forget_dora_norms, kept_dora_norm
from ..methods.conv1d import is_conv1d
from ..methods.kept_norm import KeptNorm, may_keep, squared_norms
from ..weights import NF4Weight
from .sharded import is_gathered

Tensor = torch.Tensor


class Norms:
    """What one layer keeps."""

    def __init__(self) -> None:
        self.norms: dict[str, KeptNorm] = {}
        self.squared: KeptNorm | None = None

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
    if layer.training or torch.is_grad_enabled() or not may_keep(A.device):
        return _form(kept, _weight(layer, weight), A, B, scale)
    source, scaling = (layer.get_base_layer().weight if weight is None else weight,), layer.scaling[name]
    known = kept.norms.get(name)
    if known is None or not known.holds(source, (A, B), scaling):
        value = _form(kept, _weight(layer, weight), A, B, scale)
        known = kept.norms[name] = KeptNorm(value, source, (A, B), scaling)
    return known.value


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
    base = layer.get_base_layer()
    found = dequantize_module_weight(base).detach()
    # as it lies in the base: [K, N] in a Conv1D
    return found.T if is_conv1d(base) else found


def _fresh(weight: Tensor | NF4Weight, A: Tensor, B: Tensor, scale: Tensor | float) -> Tensor:
    # an NF4Weight would keep its own
    squared = torch.ops.lorafam.squared_row_norm(*weight.storage()) if isinstance(weight, NF4Weight) else None
    return F.row_norm(weight, A, B, scale, weight_squared=squared)


def _form(kept: Norms, weight: Tensor | NF4Weight, A: Tensor, B: Tensor, scale: Tensor | float) -> Tensor:
    squared = None
    # a compiled graph can't ask for a version, and a weight that is decoded now is new each time
    if isinstance(weight, torch.nn.Parameter) and not torch.compiler.is_compiling():
        kept.squared = squared_norms(kept.squared, weight)
        squared = kept.squared.value
    return F.row_norm(weight, A, B, scale, weight_squared=squared)
