"""The layer around a frozen base: which adapter is active, whether it is disabled, and which way a forward goes.

A method (one file beside this one) says what its tensors are, what B̂ and c are, and how its forward goes; everything
here is the same for all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from .. import functional as F
from ..compat.accelerate import HOOK, is_offloaded, loaded
from ..compat.torch import as_transformed
from .adapter import Adapter, AdapterSettings
from .adding import add
from .base_weight import base_sizes, is_bitsandbytes_4bit, own_weight
from .mergeable import Mergeable
from .method import Method

Tensor = torch.Tensor


class AdapterLayer(Mergeable, Method, ABC):
    """x [..., K] → [..., N]: `base_layer` plus the active adapter."""

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
        own: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(base, nn.Module):
            raise TypeError(f"base: expected a module, got {type(base).__name__}")
        self.check_base(base)
        # of a parameter that is several weights
        self.experts = 1
        self.in_features, self.out_features = self.sizes(base)
        if is_bitsandbytes_4bit(base):
            # its evaluation forward would repack the weight in place, for its own kernel only
            base.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
        self.base_layer = base.requires_grad_(False)
        self.adapters = nn.ModuleDict()
        self._enabled, self._runs_base = True, False
        self._row_adapters: tuple[str | None, ...] | None = None
        self.active_adapter = adapter
        self.put_adapter(adapter, AdapterSettings(r, alpha, dropout, rslora, init, bias), own or {})
        self.train(base.training)

    def check_base(self, base: nn.Module) -> None:
        """Raises TypeError for a base that has an adapter."""
        if isinstance(base, AdapterLayer):
            raise TypeError(f"base: expected a layer without an adapter, got a {type(base).__name__}")

    def sizes(self, base: nn.Module) -> tuple[int, int]:
        """(K, N); raises ValueError for a base that isn't for this layer."""
        return base_sizes(base)

    @abstractmethod
    def new_adapter(self, settings: AdapterSettings, own: Mapping[str, Any]) -> Adapter:
        """The method's tensors, at values where the layer equals its base; `own` are `layer_settings`."""

    @abstractmethod
    def adapted(self, x: Tensor) -> Tensor:
        """The forward with the active adapter."""

    def scale(self, dtype: torch.dtype | None = None) -> Tensor:
        """What multiplies B of the active adapter: one value, or one a rank [r], then formed in `dtype`."""
        return self.active.scale

    def b_hat(self, rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Tensor:
        """`rows` of B̂ [N, r] of the active adapter."""
        return self.B[rows].to(dtype) * self.scale(dtype).to(dtype)

    def merged_weight(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """c ∘ (W + B̂ A) for the `rows` of W [N, K], formed in their dtype: fp32 or fp64."""
        return torch.addmm(weight, self.b_hat(rows, weight.dtype), self.A.to(weight.dtype))

    def merged_bias(self, bias: Tensor | None) -> Tensor | None:
        """The bias of the merged layer."""
        return bias

    def add_adapter(
        self,
        name: str,
        r: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        rslora: bool = False,
        init: str = "default",
        bias: bool = False,
    ) -> None:
        """A further adapter of this method; `set_adapter` makes it the active one."""
        self.put_adapter(name, AdapterSettings(r, alpha, dropout, rslora, init, bias), {})

    def put_adapter(
        self,
        name: str,
        settings: AdapterSettings,
        own: Mapping[str, Any],
        kind: type[AdapterLayer] | None = None,
    ) -> None:
        """`add_adapter` with settings in one piece, and those that only the method has. `kind`: the layer's class while
        this adapter is the active one, where that is of another method (LoRA, DoRA); None: as it is now.
        """
        add(self, name, settings, own, kind or type(self))
        self._settle()

    def set_adapter(self, name: str, *, elsewhere: bool = False) -> None:
        """Makes an adapter the active one; only its tensors are trainable then. With `elsewhere` it may be one that
        other layers of the model have: this one is its base then. Raises KeyError, RuntimeError if merged.
        """
        if name not in self.adapters and not elsewhere:
            raise KeyError(f"adapter: expected one of {list(self.adapters)}, got {name!r}")
        if self.merged:
            raise RuntimeError("set_adapter: unmerge the layer first")
        self.active_adapter = name
        for other, adapter in self.adapters.items():
            adapter.requires_grad_(other == name)
        if self.has_active:
            self.__class__ = self.active.kind
        self._settle()

    @property
    def has_active(self) -> bool:
        """Whether the active adapter is one of this layer's."""
        return self.active_adapter in self.adapters

    @property
    def active(self) -> Adapter:
        """Raises KeyError where the layer doesn't have it."""
        return self.adapters[self.active_adapter]  # type: ignore[return-value]

    def adapter_called(self, name: str | None) -> Adapter:
        """None: the active one. Raises KeyError where the layer doesn't have it."""
        return self.active if name is None else self.adapters[name]  # type: ignore[return-value]

    @property
    def A(self) -> nn.Parameter:
        return self.active.A

    @property
    def B(self) -> nn.Parameter:
        return self.active.B

    @property
    def weight(self) -> Any:
        """The base's, without the adapter, for models that look at their layers: its dtype, device, values. Of
        bitsandbytes' 4-bit codes what they stand for: Switch Transformers turn their input into the weight's dtype.
        """
        base: Any = self.base_layer
        if is_bitsandbytes_4bit(base) and base.weight.quant_state is not None:
            return own_weight(base)
        return base.weight

    @property
    def bias(self) -> Any:
        """The base's, or None."""
        return getattr(self.base_layer, "bias", None)

    @property
    def enabled(self) -> bool:
        """Whether the adapter counts; where not, the layer is its base, also a merged one."""
        return self._enabled

    @enabled.setter
    def enabled(self, value: bool) -> None:
        self._enabled = value
        self._settle()

    @property
    def row_adapters(self) -> tuple[str | None, ...] | None:
        """A name, or None for the base, for each row of a batch (`model.adapters_by_row`)."""
        return self._row_adapters

    @row_adapters.setter
    def row_adapters(self, names: tuple[str | None, ...] | None) -> None:
        self._row_adapters = names
        self._settle()

    def _settle(self) -> None:
        """The one place that decides on modes: which base is in the layer, and whether it runs alone."""
        whole = self._enabled and self._row_adapters is None
        if self._folded is not None:
            self._folded.put(self, inside=whole)
        self._runs_base = not self._enabled or (whole and (self._folded is not None or not self.has_active))

    def _slow_forward(self, *args: Any, **kwargs: Any) -> Any:
        # torch.jit's, which traces plain operations and no autograd Function
        with as_transformed():
            return super()._slow_forward(*args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self._runs_base:
            return self.base_layer(x, *args, **kwargs)
        adapters: Any = self._modules["adapters"]
        active = adapters._modules.get(self.active_adapter)
        if active is not None and HOOK in active.__dict__ and is_offloaded(active):
            return self._with_loaded(x, *args, **kwargs)
        if self._row_adapters is None and not args and not kwargs:
            return self.adapted(x)
        return self._forward(x, *args, **kwargs)

    def _with_loaded(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The forward while accelerate's hooks have the adapters' tensors loaded."""
        if self.training and torch.is_grad_enabled():
            raise RuntimeError(
                "the adapter is offloaded, so that what it learns would be lost: adapt the model after it was "
                "dispatched, or evaluate"
            )
        with loaded(self.adapters.values()):
            return self._forward(x, *args, **kwargs)

    def _forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows = self._row_adapters
        if rows is not None:
            used: Any = next((self.adapters[name] for name in rows if name is not None), None)
            if used is None:
                return self.base_layer(x, *args, **kwargs)
            return used.kind.by_row(self, x, rows, *args, **kwargs)
        if args or kwargs:
            return self.around_base(x, self.base_layer(x, *args, **kwargs))
        return self.adapted(x)

    def around_base(self, x: Tensor, y: Tensor) -> Tensor:
        """The adapted output from the base's own output y = base(x), for a base whose forward must run."""
        return y + self.update(x).to(y.dtype)

    def by_row(self, x: Tensor, names: tuple[str | None, ...], *args: Any, **kwargs: Any) -> Tensor:
        """Each row of the batch with the adapter that it names."""
        raise ValueError(f"row_adapters: expected LoRA, a {type(self).__name__} has one adapter for all rows")

    def update(self, x: Tensor) -> Tensor:
        """U = drop(x) Aᵀ B̂ᵀ in fp32."""
        return F.low_rank(x, self.A, self.B, self.scale(), dropout_p=self.active.dropout, training=self.training)

    def base_bias(self) -> Tensor | None:
        bias = getattr(self.base_layer, "bias", None)
        if isinstance(bias, Tensor):
            return bias
        # torch's quantised layers have it as a method
        found = bias() if callable(bias) else None
        return found if isinstance(found, Tensor) else None

    def extra_repr(self) -> str:
        merged, disabled = ", merged" if self.merged else "", "" if self.enabled else ", disabled"
        return f"active_adapter={self.active_adapter!r}{merged}{disabled}"
