"""LoRA of an embedding, as PEFT has it: row i of the table E [V, D] becomes e_i + s B a_i, a_i the column i of A.

In the family's terms W = Eᵀ [D, V] and x is one-hot: A [r, V], B [D, r]. A look-up has nothing to fuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as nnf

from .adapter import Adapter, AdapterSettings, lora_scaling
from .adapter_layer import AdapterLayer
from .base_weight import base_device
from .merge_report import MergeReport
from .registry import register_embedding
from .rows import add_by_row, rows_of_batch

Tensor = torch.Tensor


@register_embedding("lora")
class LoraEmbedding(AdapterLayer):
    """ids [...] → [..., D]; `dropout` drops nothing here, as in PEFT. Merged, the base has a table of its own, no more
    an output head's where the two were tied.
    """

    tensor_names: ClassVar[Mapping[str, str]] = {"A": "lora_embedding_A", "B": "lora_embedding_B"}
    adds_up = True
    lacks: ClassVar[Mapping[str, str]] = {"bias": "an embedding's adapter has none"}

    def sizes(self, base: nn.Module) -> tuple[int, int]:
        if not isinstance(base, nn.Embedding):
            raise ValueError(f"base: expected an nn.Embedding, got {type(base).__name__}")
        return base.num_embeddings, base.embedding_dim

    def new_adapter(self, settings: AdapterSettings, own: Mapping[str, Any]) -> Adapter:
        r, init = settings.r, settings.init
        if init not in ("default", "gaussian"):
            raise ValueError(f"init: expected 'default' for an embedding, got {init!r}")
        device = base_device(self.base_layer)
        adapter = Adapter(settings, lora_scaling(r, settings.alpha, settings.rslora), device)
        # as in PEFT; the layer equals its base
        adapter.A = nn.Parameter(torch.zeros(r, self.in_features, device=device))
        adapter.B = nn.Parameter(torch.randn(self.out_features, r, device=device))
        return adapter

    def adapted(self, x: Tensor) -> Tensor:
        return self.around_base(x, self.base_layer(x))

    def update(self, x: Tensor) -> Tensor:
        return self._update(x, self.active)

    def by_row(self, x: Tensor, names: tuple[str | None, ...], *args: Any, **kwargs: Any) -> Tensor:
        rows = rows_of_batch(x, names, 1)
        used = dict.fromkeys(name for name in rows if name is not None)
        y = self.base_layer(x, *args, **kwargs)
        # the layer's class is the active adapter's
        own_update = partial(LoraEmbedding._update, self)
        return add_by_row(y, x, rows, {name: partial(own_update, adapter=self.adapters[name]) for name in used})

    def _update(self, x: Tensor, adapter: Any) -> Tensor:
        base: Any = self.base_layer
        looked_up = nnf.embedding(x, adapter.A.T, base.padding_idx, None, base.norm_type, base.scale_grad_by_freq)
        update = looked_up @ (adapter.B * adapter.scale).to(looked_up.dtype).T
        # some models multiply what they look up
        scale = getattr(base, "embed_scale", None)
        return update if scale is None else update * scale

    def merge(self, safe: bool = True, *, into: str = "same", **more: Any) -> MergeReport:
        """As a linear layer's; into the dtype that the table has."""
        if into != "same":
            raise ValueError(f"into: an embedding keeps its dtype, expected 'same', got {into!r}")
        return super().merge(safe, **more)
