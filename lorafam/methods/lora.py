"""LoRA (arXiv 2106.09685), rsLoRA by its scaling; on a 4-bit base QLoRA (arXiv 2305.14314): B̂ = s B, c = 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .. import functional as F
from .adapter import Adapter, initial_a, lora_scaling
from .adapter_layer import AdapterLayer
from .base_weight import base_device, base_weight
from .registry import register

Tensor = torch.Tensor


@register("lora")
class LoraLinear(AdapterLayer):
    """Y = x Wᵀ + s drop(x) Aᵀ Bᵀ + bias + s bias_B; the last term only with `bias=True` (PEFT's lora_bias)."""

    def new_adapter(self, r: int, alpha: float, dropout: float, rslora: bool, init: str, bias: bool) -> Adapter:
        device = base_device(self.base_layer)
        adapter = Adapter(r, alpha, dropout, rslora, lora_scaling(r, alpha, rslora), device)
        adapter.A = initial_a(r, self.in_features, init, device)
        adapter.B = nn.Parameter(torch.zeros(self.out_features, r, device=device))
        if bias:
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
        if self.row_adapters is not None:
            return self._by_row(x, weight, self.row_adapters)
        active, bias = self.active, self.merged_bias(self.base_bias())
        return F.lora_linear(
            x, weight, active.A, active.B, active.scale, bias, dropout_p=active.dropout, training=self.training
        )

    def _by_row(self, x: Tensor, weight: Any, names: tuple[str | None, ...]) -> Tensor:
        """Each row of the batch with the adapter it names, in one product."""
        if x.ndim < 2 or x.shape[0] != len(names):
            raise ValueError(f"x: expected a batch of {len(names)} rows, one for each name, got {list(x.shape)}")
        used = list(dict.fromkeys(name for name in names if name is not None))
        if not used:
            return self.base_layer(x)
        adapters: list[Any] = [self.adapters[name] for name in used]
        rows = torch.tensor([-1 if name is None else used.index(name) for name in names], device=x.device)
        As, Bs, scales = zip(*((adapter.A, adapter.B, adapter.scale) for adapter in adapters), strict=True)
        return F.grouped_lora_linear(x, weight, As, Bs, scales, self.base_bias(), rows=rows)  # type: ignore[return-value]

    def around_base(self, x: Tensor, y: Tensor) -> Tensor:
        y = super().around_base(x, y)
        own = self.merged_bias(None)
        return y if own is None else y + own.to(y.dtype)
