"""AdaLoRA (arXiv 2303.10512): the update as P Λ Q, with B̂ = α/(rank_num + 1e-5) B diag(E), c = 1.

The scaling is α, as in PEFT, and rank_num is the rank at the start, which pruning doesn't change. `RankAllocator` sets
the E of pruned ranks to zero.
"""

from __future__ import annotations

import torch
from torch import nn

from .. import functional as F
from .adapter import Adapter
from .adapter_layer import AdapterLayer
from .base_weight import base_device, base_weight
from .registry import register

Tensor = torch.Tensor


# the dimension of the ranks
FACTORS = {"A": 0, "E": 0, "B": 1}


@register("adalora")
class AdaLoraLinear(AdapterLayer):
    """Y = x Wᵀ + α/(rank_num + 1e-5) drop(x) (A ∘ E)ᵀ Bᵀ + bias, A [r, K], E [r, 1], B [N, r]."""

    def new_adapter(self, r: int, alpha: float, dropout: float, rslora: bool, init: str, bias: bool) -> Adapter:
        if rslora:
            raise ValueError("rslora: AdaLoRA has a scaling of its own, expected False")
        if bias:
            raise ValueError("bias: AdaLoRA has no bias of its own, expected False")
        if init != "default":
            raise ValueError(f"init: AdaLoRA has one initialisation, expected 'default', got {init!r}")
        device = base_device(self.base_layer)
        adapter = Adapter(r, alpha, dropout, rslora, float(alpha), device)
        # E = 0: the layer equals its base; A and B as in PEFT
        adapter.A = nn.Parameter(torch.randn(r, self.in_features, device=device) * 0.02)
        adapter.E = nn.Parameter(torch.zeros(r, 1, device=device))
        adapter.B = nn.Parameter(torch.randn(self.out_features, r, device=device) * 0.02)
        return adapter

    @property
    def E(self) -> nn.Parameter:
        return self.active.E  # type: ignore[return-value]

    @property
    def rank_num(self) -> int:
        return self.active.rank_num

    @torch.no_grad()
    def keep_ranks(self, kept: Tensor) -> list[tuple[nn.Parameter, nn.Parameter, int]]:
        """Drops all ranks but those of `kept` (indices), gradients too: A, E and B are new parameters then.

        Returns (old, new, dimension of the ranks) of each. `rank_num`, and so the scaling, stays.
        """
        replaced = []
        for name, dim in FACTORS.items():
            old: nn.Parameter = getattr(self.active, name)
            new = nn.Parameter(old.index_select(dim, kept), requires_grad=old.requires_grad)
            new.grad = None if old.grad is None else old.grad.index_select(dim, kept)
            setattr(self.active, name, new)
            replaced.append((old, new, dim))
        return replaced

    def scale(self, dtype: torch.dtype | None = None) -> Tensor:
        return F.adalora_scale(self.E if dtype is None else self.E.to(dtype), self.active.scale, self.rank_num)

    def adapted(self, x: Tensor) -> Tensor:
        weight = base_weight(self.base_layer).weight
        if weight is None:
            return self.around_base(x, self.base_layer(x))
        return F.adalora_linear(
            x,
            weight,
            self.A,
            self.E,
            self.B,
            self.active.scale,
            self.rank_num,
            self.base_bias(),
            dropout_p=self.active.dropout,
            training=self.training,
        )
