"""One named adapter of a layer: its trainable tensors and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from .. import config

Tensor = torch.Tensor


class AdapterSettings(NamedTuple):
    """What any method's adapter may be given; what a method doesn't have stays at its default."""

    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    rslora: bool = False
    init: str = "default"
    bias: bool = False

    @classmethod
    def of(cls, given: config.AdapterConfig, rank: int, alpha: float) -> AdapterSettings:
        """Those of one layer's adapter, with the rank and alpha that the patterns give it."""
        return cls(rank, alpha, given.dropout, given.rslora, given.init, given.bias)

    def check(self) -> None:
        """Raises ValueError naming the setting that is wrong."""
        config.check_flag("rslora", self.rslora)
        config.check_flag("bias", self.bias)
        config.check_rank("r", self.r)
        config.check_alpha("alpha", self.alpha)
        config.check_dropout_probability("dropout", self.dropout)
        config.check_init("init", self.init)


class Adapter(nn.Module):
    """A [r, K] and B [N, r] (with E [r, 1] for AdaLoRA, magnitude [N] for DoRA, bias [N]), fp32 by default.

    `scaling` multiplies B A: α/r, α/√r for rsLoRA (arXiv 2312.03732), α for AdaLoRA. Forwards take it as `scale`, a
    tensor: torch.compile would compile anew for another float.
    """

    # buffers that `_form_scale` makes anew
    _formed: ClassVar[tuple[str, ...]] = ("scale",)
    A: nn.Parameter
    B: nn.Parameter
    scale: Tensor
    # the layer's class while this is its active adapter, an `AdapterLayer`
    kind: Any
    # AdaLoRA's: the rank at the start, and which of those ranks were kept for good
    rank_num: int
    kept_ranks: list[bool] | None

    def __init__(self, settings: AdapterSettings, scaling: float, device: torch.device) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout, self.rslora = settings[:4]
        self.rank_num, self.kept_ranks = self.rank, None
        self.register_buffer("scale", torch.tensor(scaling, dtype=torch.float64, device=device), persistent=False)
        self.scaling = scaling

    @torch.no_grad()
    def start_from(self, A: Tensor, B: Tensor) -> None:
        """Takes over factors that the base's weight has lost, and remembers them."""
        self.A.copy_(A)
        self.B.copy_(B)
        for name, factor in (("first_A", self.A), ("first_B", self.B)):
            self.register_buffer(name, factor.detach().clone(), persistent=False)

    @property
    def start_A(self) -> Tensor | None:
        """Where a part of the base weight was taken into A and B: A as it was then."""
        return self._buffers.get("first_A")

    @property
    def start_B(self) -> Tensor | None:
        """The same of B."""
        return self._buffers.get("first_B")

    @property
    def scaling(self) -> float:
        return self._scaling

    @scaling.setter
    def scaling(self, value: float) -> None:
        self._scaling = float(value)
        self.scale.fill_(self._scaling)

    @property
    def alpha_now(self) -> float:
        """α as the scaling is, which may have been set since."""
        if self.scaling == self.kind.scaling_of(self.rank, self.alpha, self.rslora):
            return self.alpha
        return self.scaling / float(self.kind.scaling_of(self.rank, 1, self.rslora))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        # `.to(bfloat16)` narrows buffers, `.to_empty()` loses their values, meta ones can't be copied
        for name in self._formed:
            del self._buffers[name]
        try:
            super()._apply(fn, recurse)
        finally:
            self._form_scale()
        return self

    def _form_scale(self) -> None:
        # of the parameters' kind, which may be fake tensors, but not sharded
        one: Any = next(self.parameters()).detach()
        local = one.to_local() if hasattr(one, "to_local") else one
        self.register_buffer("scale", local.new_full((), self._scaling, dtype=torch.float64), persistent=False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.scale.device != next(self.parameters()).device:
            # assign=True puts parameters elsewhere than they were made
            self._form_scale()

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}, rslora={self.rslora}"


def lora_scaling(rank: int, alpha: float, rslora: bool) -> float:
    """α/r, or α/√r."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def lora_adapter(settings: AdapterSettings, in_features: int, out_features: int, device: torch.device) -> Adapter:
    """A as `initial_a` and B [N, r] of zeros, so that the layer equals its base."""
    scaling = lora_scaling(settings.r, settings.alpha, settings.rslora)
    adapter = Adapter(settings, scaling, device)
    adapter.A = initial_a(settings.r, in_features, settings.init, device)
    adapter.B = nn.Parameter(torch.zeros(out_features, settings.r, device=device))
    return adapter


def initial_a(rank: int, in_features: int, init: str, device: torch.device) -> nn.Parameter:
    """A [r, K]: uniform in ±1/√K ("default", as nn.Linear and PEFT), or normal with standard deviation 1/r
    ("gaussian").
    """
    A = torch.empty(rank, in_features, device=device)
    if init == "gaussian":
        nn.init.normal_(A, std=1 / rank)
    else:
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    return nn.Parameter(A)
