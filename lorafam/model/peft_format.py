"""PEFT's adapter format: how tensors are named in adapter_model.safetensors (`peft_settings`: what its settings are).

A tensor's name is "base_model.model." + the module's path + one of

    LoRA      .lora_A.weight [r, K]   .lora_B.weight [N, r]   .lora_B.bias [N]
              of an embedding [V, D]: .lora_embedding_A [r, V]   .lora_embedding_B [D, r]
    DoRA      the same and .lora_magnitude_vector [N], of an embedding [D]
    AdaLoRA   .lora_A [r, K]   .lora_E [r, 1]   .lora_B [N, r], pruned ranks left out and listed in rank_pattern
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..methods import AdapterLayer

PREFIX = "base_model.model."
TENSOR_FILE = "adapter_model.safetensors"


def adapter_tensors(layers: dict[str, AdapterLayer], name: str | None = None) -> dict[str, torch.Tensor]:
    """Every tensor of the active adapters, or of those called `name`, under PEFT's name; pruned AdaLoRA ranks are left
    out.

    Where a part of the base weight was taken into A₀ and B₀, the adapter for the base as it was: s (B A − B₀ A₀), of
    twice the rank.
    """
    tensors = {}
    for path, layer in layers.items():
        adapter: Any = layer.adapter_called(name)
        # the layer's own class is that of its active adapter
        for attribute, ending in adapter.kind.tensor_names.items():
            tensor = getattr(adapter, attribute, None)
            if tensor is None:
                continue
            kept = adapter.kept_ranks
            if kept is not None and len(kept) == adapter.A.shape[0]:
                mask = torch.tensor(kept, device=tensor.device)
                tensor = tensor[:, mask] if adapter.kind.rank_axes[attribute] else tensor[mask]
            if attribute == "A" and adapter.start_A is not None:
                tensor = torch.cat([tensor, adapter.start_A.to(tensor)])
            if attribute == "B" and adapter.start_B is not None:
                tensor = torch.cat([tensor, -adapter.start_B.to(tensor)], 1)
            tensors[f"{PREFIX}{path}.{ending}"] = tensor.detach().contiguous()
    return tensors


def apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same with none that share memory, which safetensors refuses: what a file ties."""
    separate: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return separate
