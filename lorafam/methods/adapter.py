"""One named adapter of a layer: its trainable tensors and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .. import config

Tensor = torch.Tensor


class Adapter(nn.Module):
    """A [r, K] and B [N, r] (with E [r, 1] for AdaLoRA, magnitude [N] for DoRA, bias [N]), fp32 by default.

    `scaling` multiplies B A: α/r, α/√r for rsLoRA (arXiv 2312.03732), α for AdaLoRA. Forwards take it as `scale`, a
    tensor: torch.compile would compile anew for another float.
    """

    A: nn.Parameter
    B: nn.Parameter
    scale: Tensor
    # AdaLoRA's: the rank at the start, and which of those ranks were kept for good
    rank_num: int
    kept_ranks: list[bool] | None

    def __init__(
        self, rank: int, alpha: float, dropout: float, rslora: bool, scaling: float, device: torch.device
    ) -> None:
        super().__init__()
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.rank_num, self.kept_ranks = rank, None
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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Adapter:
        # `.to(bfloat16)` narrows buffers, `.to_empty()` loses their values, meta ones can't be copied
        del self._buffers["scale"]
        try:
            super()._apply(fn, recurse)
        finally:
            self._form_scale()
        return self

    def _form_scale(self) -> None:
        # of A's kind, which may be a fake tensor, but not sharded
        A: Any = self.A.detach()
        local = A.to_local() if hasattr(A, "to_local") else A
        self.register_buffer("scale", local.new_full((), self._scaling, dtype=torch.float64), persistent=False)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self.scale.device != self.A.device:
            # assign=True puts parameters elsewhere than they were made
            self._form_scale()

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}, rslora={self.rslora}"


def lora_scaling(rank: int, alpha: float, rslora: bool) -> float:
    """α/r, or α/√r."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def check_settings(r: Any, alpha: Any, dropout: Any, rslora: Any, init: Any, bias: Any) -> None:
    """Raises ValueError naming the setting that is wrong."""
    config.check_flag("rslora", rslora)
    config.check_flag("bias", bias)
    config.check_rank("r", r)
    config.check_alpha("alpha", alpha)
    config.check_dropout_probability("dropout", dropout)
    config.check_init("init", init)


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
