"""DoRA (arXiv 2402.09353): B̂ = s B, c = m / ‖W + s B A‖ per output feature, no gradient through the norm (section 4.3).

The norm is formed anew whenever gradients are on. In evaluation without gradients it is kept, as long as A and B equal
copies of what it was formed of (`kept_norm`). An embedding [V, D] is W = Eᵀ [D, V]: a magnitude a feature.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as nnf

from .. import config
from .. import functional as F
from ..compat.accelerate import loaded
from ..compat.torch import is_transformed
from ..config import AdapterConfig
from ..ops.row_norm import NORM_FLOOR
from ..weights import NF4Weight
from .adapter import Adapter, AdapterSettings, lora_adapter
from .adapter_layer import AdapterLayer
from .base_weight import base_device, base_weight, dense_base_weight, own_weight
from .kept_norm import KeptNorm, may_keep, squared_norms
from .lora_embedding import LoraEmbedding
from .lora_in_peft import LoraInPeft
from .registry import register, register_embedding

Tensor = torch.Tensor


class DoraLayer(AdapterLayer):
    """What is DoRA's whatever the base. `dora_dropout="input"` drops both paths, as PEFT does; `norm_gradient` lets the
    gradient through n.
    """

    lacks: ClassVar[Mapping[str, str]] = {"bias": "DoRA has no bias of its own"}
    adds_up = False
    _norm: KeptNorm | None = None
    _weight_squared: KeptNorm | None = None

    @classmethod
    def layer_settings(cls, config: AdapterConfig, bases: Iterable[nn.Module]) -> dict[str, Any]:
        return {"dora_dropout": config.dora_dropout, "norm_gradient": config.dora_norm_gradient}

    def __init__(
        self,
        base: nn.Module,
        r: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "default",
        bias: bool = False,
        adapter: str = "default",
        dora_dropout: str = "adapter",
        norm_gradient: bool = False,
    ) -> None:
        config.check_choice("dora_dropout", dora_dropout, config.DORA_DROPOUTS)
        config.check_flag("norm_gradient", norm_gradient)
        own = {"dora_dropout": dora_dropout, "norm_gradient": norm_gradient}
        super().__init__(base, r, alpha, dropout, rslora, init, bias, adapter, own)

    def new_adapter(self, settings: AdapterSettings, own: Mapping[str, Any]) -> Adapter:
        adapter: Any = self.new_factors(settings)
        # those of the active one where nothing is said
        adapter.dora_dropout = own.get("dora_dropout", self.dora_dropout)
        adapter.norm_gradient = own.get("norm_gradient", self.norm_gradient)
        # the update is 0: the norm of the base's rows, so that c = 1
        weight = own_weight(self.base_layer)
        norm = self._row_norm(adapter.A, adapter.B, adapter.scale, weight, differentiable=False)
        adapter.magnitude = nn.Parameter(norm.to(torch.float32))
        return adapter

    @abstractmethod
    def new_factors(self, settings: AdapterSettings) -> Adapter:
        """A and B, of an update that is 0."""

    def _of_active(self, name: str, default: Any) -> Any:
        return getattr(self.adapters._modules.get(self.active_adapter), name, default)

    @property
    def dora_dropout(self) -> str:
        """The active adapter's."""
        return str(self._of_active("dora_dropout", "adapter"))

    @property
    def norm_gradient(self) -> bool:
        """The active adapter's."""
        return bool(self._of_active("norm_gradient", False))

    @property
    def magnitude(self) -> nn.Parameter:
        return self.active.magnitude  # type: ignore[return-value]

    def norm(self) -> Tensor:
        """n [N] in fp32: ‖W + s B A‖ per output feature, of the unmerged base."""
        folded = self._folded
        inside = folded is not None and folded.inside
        return self._norm_with(folded.weight if folded and inside else own_weight(self.base_layer))

    def _norm_with(self, weight: Any) -> Tensor:
        """Of a base's own weight, or None for what its forward tells."""
        active: Any = self.active
        A, B = active.A, active.B
        if self.training or torch.is_grad_enabled() or not may_keep(A.device):
            return self._row_norm(A, B, active.scale, weight, differentiable=active.norm_gradient)
        weights = [*self.base_layer.parameters(), *self.base_layer.buffers()] if weight is None else (weight,)
        kept = self._norm
        if kept is None or not kept.holds(weights, (A, B), active.scaling):
            formed = self._row_norm(A, B, active.scale, weight, differentiable=active.norm_gradient)
            kept = self._norm = KeptNorm(formed, weights, (A, B), active.scaling)
        return kept.value

    def merged_weight(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        adapted = super().merged_weight(weight, rows)
        norm = torch.linalg.vector_norm(adapted, dim=1).clamp_min(NORM_FLOOR)
        return adapted * (self.magnitude[rows].to(adapted.dtype) / norm).unsqueeze(1)

    def _row_norm(self, A: Tensor, B: Tensor, scale: Tensor, weight: Any, *, differentiable: bool) -> Tensor:
        if weight is None:
            weight = dense_base_weight(self.base_layer)
        # a compiled graph and a transform can't ask for the weight's version: there ‖w_j‖² is formed anew
        if isinstance(weight, NF4Weight) or torch.compiler.is_compiling() or is_transformed():
            squared = None
        else:
            self._weight_squared = squared_norms(self._weight_squared, weight)
            squared = self._weight_squared.value
        return F.row_norm(weight, A, B, scale, weight_squared=squared, differentiable=differentiable)


@register("dora")
class DoraLinear(LoraInPeft, DoraLayer):
    """Y = m/n ∘ (x Wᵀ + s drop(x) Aᵀ Bᵀ) + bias."""

    tensor_names: ClassVar[Mapping[str, str]] = {
        "A": "lora_A.weight",
        "B": "lora_B.weight",
        "magnitude": "lora_magnitude_vector",
    }
    use_dora = True

    def new_factors(self, settings: AdapterSettings) -> Adapter:
        return lora_adapter(settings, self.in_features, self.out_features, base_device(self.base_layer))

    def adapted(self, x: Tensor) -> Tensor:
        weight = base_weight(self.base_layer).weight
        if weight is None:
            return self.around_base(x, self.base_layer(x))
        active: Any = self.active
        return F.dora_linear(
            x,
            weight,
            active.A,
            active.B,
            active.magnitude,
            active.scale,
            self.base_bias(),
            dropout_p=active.dropout,
            dora_dropout=active.dora_dropout,
            training=self.training,
            norm=self._norm_with(weight),
        )

    def around_base(self, x: Tensor, y: Tensor) -> Tensor:
        if self.training and self.active.dropout and self.dora_dropout == "input":
            return self._input_dropped(x, y)
        with loaded([self.base_layer]):
            bias = self.base_bias()
        product = (y if bias is None else y - bias) + self.update(x).to(y.dtype)
        scaled = product * (self.magnitude / self.norm()).to(y.dtype)
        return scaled if bias is None else scaled + bias

    def _input_dropped(self, x: Tensor, y: Tensor) -> Tensor:
        """y + (c − 1) ∘ x_d Wᵀ + c ∘ x_d Aᵀ B̂ᵀ with x_d = drop(x), as PEFT has it whatever the base's forward adds."""
        with loaded([self.base_layer]):
            weight = own_weight(self.base_layer)
        if weight is None:
            raise RuntimeError(
                "dora_dropout: 'input' needs the weight of the base layer, which a "
                f"{type(self.base_layer).__name__} doesn't give; use 'adapter'"
            )
        active = self.active
        dropped = nnf.dropout(x, active.dropout)
        product = F.nf4_linear(dropped, weight) if isinstance(weight, NF4Weight) else nnf.linear(dropped, weight)
        update = F.low_rank(dropped, active.A, active.B, active.scale)
        c = self.magnitude / self.norm()
        return y + ((c - 1) * product + c * update).to(y.dtype)


@register_embedding("dora")
class DoraEmbedding(DoraLayer, LoraEmbedding):
    """ids [...] → [..., D]: m/n ∘ (what LoRA gives)."""

    tensor_names: ClassVar[Mapping[str, str]] = {
        "A": "lora_embedding_A",
        "B": "lora_embedding_B",
        "magnitude": "lora_magnitude_vector",
    }

    def new_factors(self, settings: AdapterSettings) -> Adapter:
        return LoraEmbedding.new_adapter(self, settings, {})

    def around_base(self, x: Tensor, y: Tensor) -> Tensor:
        product = y + self.update(x).to(y.dtype)
        return product * (self.magnitude / self.norm()).to(y.dtype)

    def by_row(self, x: Tensor, names: tuple[str | None, ...], *args: Any, **kwargs: Any) -> Tensor:
        return AdapterLayer.by_row(self, x, names, *args, **kwargs)
