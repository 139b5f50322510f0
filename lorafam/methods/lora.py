"""LoRA (arXiv 2106.09685), rsLoRA by its scaling; on a 4-bit base QLoRA (arXiv 2305.14314): B̂ = s B, c = 1."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn

from .. import functional as F
from .adapter import Adapter, AdapterSettings, lora_adapter
from .adapter_layer import AdapterLayer
from .base_weight import base_device, base_weight
from .lora_in_peft import LoraInPeft
from .registry import register
from .rows import add_by_row, rows_of_batch

Tensor = torch.Tensor


@register("lora")
class LoraLinear(LoraInPeft, AdapterLayer):
    """Y = x Wᵀ + s drop(x) Aᵀ Bᵀ + bias + s bias_B; the last term only with `bias=True` (PEFT's lora_bias)."""

    tensor_names: ClassVar[Mapping[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight", "bias": "lora_B.bias"}
    adapts_parameters = adds_up = True
    use_dora = False

    def new_adapter(self, settings: AdapterSettings, own: Mapping[str, Any]) -> Adapter:
        device = base_device(self.base_layer)
        adapter = lora_adapter(settings, self.in_features, self.out_features, device)
        if settings.bias:
            adapter.bias = nn.Parameter(torch.zeros(self.out_features, device=device))
        return adapter

    def merged_bias(self, bias: Tensor | None) -> Tensor | None:
        own = getattr(self.active, "bias", None)
        if own is None:
            return bias
        scaled = own * self.active.scale
        return scaled if bias is None else (bias + scaled).to(bias.dtype)

    def adapted(self, x: Tensor) -> Tensor:
        weight = base_weight(self.base_layer).weight
        if weight is None:
            return self.around_base(x, self.base_layer(x))
        active, bias = self.active, self.merged_bias(self.base_bias())
        return F.lora_linear(
            x, weight, active.A, active.B, active.scale, bias, dropout_p=active.dropout, training=self.training
        )

    def update(self, x: Tensor) -> Tensor:
        return self._update(x, self.active)

    def _update(self, x: Tensor, adapter: Any) -> Tensor:
        update = F.low_rank(x, adapter.A, adapter.B, adapter.scale, dropout_p=adapter.dropout, training=self.training)
        own = getattr(adapter, "bias", None)
        return update if own is None else update + own * adapter.scale

    def by_row(self, x: Tensor, names: tuple[str | None, ...], *args: Any, **kwargs: Any) -> Tensor:
        """One product for all where no adapter drops or has a bias; else the base's, and an update for each adapter."""
        rows = rows_of_batch(x, names, 2)
        used = list(dict.fromkeys(name for name in rows if name is not None))
        adapters: list[Any] = [self.adapters[name] for name in used]
        weight = None if args or kwargs or not used else base_weight(self.base_layer).weight
        own = any(getattr(one, "bias", None) is not None or (one.dropout and self.training) for one in adapters)
        if weight is None or own:
            y = self.base_layer(x, *args, **kwargs)
            # the layer's class is the active adapter's
            own_update = partial(LoraLinear._update, self)
            return add_by_row(y, x, rows, {name: partial(own_update, adapter=self.adapters[name]) for name in used})
        places = torch.tensor([-1 if name is None else used.index(name) for name in rows], device=x.device)
        As, Bs, scales = zip(*((adapter.A, adapter.B, adapter.scale) for adapter in adapters), strict=True)
        return F.grouped_lora_linear(x, weight, As, Bs, scales, self.base_bias(), rows=places)  # type: ignore[return-value]
