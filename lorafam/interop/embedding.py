"""PEFT's LoRA on an embedding: tokens [...] to [..., D], y = W[x] + s A[:, x]ᵀ Bᵀ with W [V, D], A [r, V], B [D, r].

With DoRA y = m/n ∘ (W[x] + s A[:, x]ᵀ Bᵀ), n_d = ‖column d of W + s (B A)ᵀ‖: PEFT forms two [V, D] matrices for it in
every forward, here it comes from products with r rows. Without DoRA there is nothing to gain over PEFT's own code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..methods.base_weight import has_hooks
from ..ops.by_storage import FLOAT_DTYPES
from .fast_forward import scale_of
from .layer_plan import PLAIN, LayerPlan, transformed, without_adapter
from .norms import norm_of
from .report import LOW_RANK, PEFT

Tensor = torch.Tensor


def embedding_plan(layer: Any) -> LayerPlan:
    """The plan of a LoRA embedding."""
    names = tuple(name for name in layer.active_adapters if name in layer.lora_embedding_A)
    alone = without_adapter(layer, names)
    if alone is not None:
        return alone
    if transformed():
        return LayerPlan(PEFT, PLAIN)
    if {type(layer.lora_variant.get(name)).__name__ for name in names} != {"DoraEmbeddingVariant"}:
        return LayerPlan(PEFT, "a look-up and a small product: nothing to fuse")
    if len(names) > 1:
        return LayerPlan(PEFT, f"{len(names)} active adapters that aren't plain LoRA")
    name, base = names[0], layer.get_base_layer()
    tensors = (layer.lora_embedding_A[name], layer.lora_embedding_B[name], base.weight)
    if has_hooks(layer.lora_magnitude_vector[name]) or name in layer.input_fns:
        return LayerPlan(PEFT, "hooks on the adapter's modules: they run")
    if any(type(tensor) is not nn.Parameter or tensor.dtype not in FLOAT_DTYPES for tensor in tensors):
        return LayerPlan(PEFT, f"the weight or the factors are of a class or dtype of their own ({base.weight.dtype})")
    return LayerPlan(LOW_RANK, "DoRA's norm without the [vocabulary, features] sums", names, None, True)


def embedding_forward(layer: Any, plan: LayerPlan, x: Tensor) -> Tensor:
    """DoRA; a model's scaling of its embeddings applies to the low-rank part too, as in PEFT."""
    name = plan.adapters[0]
    A, B = layer.lora_embedding_A[name], layer.lora_embedding_B[name]
    scale = scale_of(layer, name, A.device)
    y = layer.base_layer(x)
    low = layer._embed(x, A.T) @ B.T * scale
    embed_scale = layer._get_embed_scale()
    if embed_scale is not None:
        low = low * embed_scale.to(low.dtype)
    norm = norm_of(layer, name, layer.get_base_layer().weight.T, A, B, scale)
    return ((y + low) * (layer.lora_magnitude_vector[name].weight / norm)).to(y.dtype)
