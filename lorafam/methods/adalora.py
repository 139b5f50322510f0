"""AdaLoRA (arXiv 2303.10512): the update as P Λ Q, with B̂ = α/(rank_num + 1e-5) B diag(E), c = 1.

The scaling is α, as in PEFT, and rank_num is the rank at the start, which pruning doesn't change. `RankAllocator` sets
the E of pruned ranks to zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from .. import functional as F
from ..config import AdapterConfig
from .adapter import Adapter, AdapterSettings
from .adapter_layer import AdapterLayer
from .base_weight import base_device, base_weight
from .lora_in_peft import flag
from .registry import register

Tensor = torch.Tensor


# a trained adapter without its schedule: PEFT asks for one that has room for a budgeting phase
_DEFAULT_SCHEDULE = {"total_step": 1, "tinit": 0, "tfinal": 0, "deltaT": 1}
_RANKS = "AdaLoRA allocates its ranks itself"


@register("adalora")
class AdaLoraLinear(AdapterLayer):
    """Y = x Wᵀ + α/(rank_num + 1e-5) drop(x) (A ∘ E)ᵀ Bᵀ + bias, A [r, K], E [r, 1], B [N, r]."""

    tensor_names: ClassVar[Mapping[str, str]] = {"A": "lora_A", "E": "lora_E", "B": "lora_B"}
    rank_axes: ClassVar[Mapping[str, int]] = {"A": 0, "E": 0, "B": 1}
    peft_type = "ADALORA"
    lacks: ClassVar[Mapping[str, str]] = {
        "init": "AdaLoRA has one initialisation",
        "rslora": "AdaLoRA has a scaling of its own",
        "bias": "AdaLoRA has no bias of its own",
        "rank_pattern": _RANKS,
        "alpha_pattern": _RANKS,
    }
    allocates_ranks = True

    @classmethod
    def scaling_of(cls, rank: int, alpha: float, rslora: bool) -> float:
        return alpha

    @classmethod
    def from_peft(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        for key in ("use_dora", "lora_bias"):
            if flag(values, key):
                raise ValueError(f"{key} = True, expected False with peft_type ADALORA")
        flag(values, "use_rslora")  # PEFT's AdaLoRA has one scaling, whatever it says
        _check_kept_ranks(values.get("rank_pattern"))
        rank, alpha = values.get("init_r", 12), values.get("lora_alpha", 8)
        # as PEFT scales where α is 0
        return {"r": rank, "alpha": rank if alpha == 0 else alpha, "dropout": values.get("lora_dropout", 0.0)}

    @classmethod
    def to_peft(cls, config: AdapterConfig, adapters: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
        """Raises ValueError for an α of 0, which PEFT takes for the rank."""
        if config.alpha == 0:
            raise ValueError("adapter: PEFT reads an AdaLoRA lora_alpha of 0 as init_r, expected another alpha")
        kept = {f"{path}.lora_E": one.kept_ranks for path, one in adapters.items() if one.kept_ranks is not None}
        schedule = {"target_r": config.r, **_DEFAULT_SCHEDULE, **getattr(model, "lorafam_rank_schedule", {})}
        own = {"init_r": config.r, "lora_alpha": config.alpha, "lora_dropout": config.dropout}
        return {**own, **schedule, "rank_pattern": kept or None}

    def new_adapter(self, settings: AdapterSettings, own: Mapping[str, Any]) -> Adapter:
        device, r = base_device(self.base_layer), settings.r
        adapter = Adapter(settings, float(settings.alpha), device)
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
        for name, dim in self.rank_axes.items():
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


def _check_kept_ranks(pattern: object) -> None:
    """rank_pattern in a file: which of the ranks were kept, by path."""
    if pattern is None:
        return
    if not isinstance(pattern, dict):
        raise ValueError(f"rank_pattern: expected paths to lists of booleans, got {pattern!r}")
    for key, kept in pattern.items():
        if not isinstance(kept, list) or not all(isinstance(one, bool) for one in kept):
            raise ValueError(f"rank_pattern[{key!r}]: expected a list of booleans, got {kept!r}")
