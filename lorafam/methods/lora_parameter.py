"""LoRA of a parameter that belongs to no layer of its own, as PEFT's `target_parameters` have it: the experts' weights
of a mixture [E, N, K], or a matrix [N, K].

W_e + s B_e A_e for each expert, A [E r, K] with experts first, B [N, r E] with ranks first, as in PEFT's files. Several
parameters of one module are layers around each other. Experts that say how they compute run grouped (`experts`);
elsewhere the module runs with the sum in its parameter's place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from ..compat.torch import is_transformed
from ..compat.transformers import experts_of
from ..config import check_choice
from .adapter import Adapter, AdapterSettings, initial_a, lora_scaling
from .adapter_layer import AdapterLayer
from .experts import expert_factors, grouped_forward, why_not_for, why_not_grouped
from .merge_report import THRESHOLD, MergeReport, check_threshold, measure, probe_rows
from .stored_weight import DENSE, merged_format

Tensor = torch.Tensor


class LoraParameter(AdapterLayer):
    """A module whose `parameter` has an adapter; it is called as the module is."""

    method = "lora"
    tensor_names: ClassVar[Mapping[str, str]] = {"A": "lora_A.weight", "B": "lora_B.weight"}

    def __init__(self, base: nn.Module, parameter: str, **settings: Any) -> None:
        self.parameter = parameter
        # of a parameter that was wrapped before
        trained = [p for p in base.parameters() if p.requires_grad] if isinstance(base, LoraParameter) else []
        super().__init__(base, **settings)
        for p in trained:
            p.requires_grad_(True)

    def sizes(self, base: nn.Module) -> tuple[int, int]:
        holder = holder_of(base)
        weight = getattr(holder, self.parameter, None)
        if not isinstance(weight, nn.Parameter) or weight.ndim not in (2, 3) or not weight.is_floating_point():
            told = "none" if weight is None else f"{list(weight.shape)} {weight.dtype}"
            raise ValueError(f"base: expected a parameter {self.parameter!r} [E, N, K] or [N, K] of floats, got {told}")
        self.experts = weight.shape[0] if weight.ndim == 3 else 1
        self.sideways = weight.ndim == 3 and bool(getattr(holder, "is_transposed", False))
        out_features, in_features = weight.shape[-2:]
        return (out_features, in_features) if self.sideways else (in_features, out_features)

    def check_base(self, base: nn.Module) -> None:
        """Layers around each other are this class's own."""

    def new_adapter(self, settings: AdapterSettings, own: Mapping[str, Any]) -> Adapter:
        if settings.dropout or settings.bias:
            raise ValueError("dropout, bias: expected none for a parameter, its update isn't a layer's")
        if settings.init not in ("default", "gaussian"):
            raise ValueError(f"init: expected 'default' for a parameter, got {settings.init!r}")
        weight = self.own_parameter
        adapter = Adapter(settings, lora_scaling(settings.r, settings.alpha, settings.rslora), weight.device)
        every = settings.r * self.experts
        adapter.A = initial_a(every, self.in_features, settings.init, weight.device)
        adapter.B = nn.Parameter(torch.zeros(self.out_features, every, device=weight.device))
        return adapter

    def around(self, weight: Tensor) -> LoraParameter:
        """A layer with the settings of the active adapter around another module whose parameter this is."""
        holder: Any = nn.Module()
        holder.is_transposed = self.sideways
        holder.register_parameter(self.parameter, nn.Parameter(weight, requires_grad=False))
        one = self.active
        return LoraParameter(holder, self.parameter, r=one.rank, alpha=one.alpha, rslora=one.rslora)

    @property
    def holder(self) -> nn.Module:
        """The module that has the parameter."""
        return holder_of(self.base_layer)

    @property
    def own_parameter(self) -> nn.Parameter:
        """W, without the adapter."""
        return self.holder._parameters[self.parameter]  # type: ignore[return-value]

    def chain(self) -> list[LoraParameter]:
        """This layer and those inside it, of which an adapter counts now."""
        found, layer = [], self
        while isinstance(layer, LoraParameter):
            if not layer._runs_base:
                found.append(layer)
            layer = layer.base_layer  # type: ignore[assignment]
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        layers, holder = self.chain(), self.holder
        if any(layer._row_adapters is not None for layer in layers):
            raise ValueError("row_adapters: expected layers, a parameter has one adapter for all rows")
        told = experts_of(holder)
        plain = why_not_grouped(holder, told) is not None or is_transformed() or torch.jit.is_tracing()
        if layers and told is not None and len(args) == 3 and not kwargs and not plain:
            weights = [getattr(holder, name) for name in told.projections]
            known = all(layer.parameter in told.projections for layer in layers)
            if known and why_not_for(weights, args[0]) is None:
                factors = {layer.parameter: layer.factors() for layer in layers}
                return grouped_forward(holder, told, factors, *args)
        with ExitStack() as stack:
            for layer in layers:
                stack.enter_context(_instead(holder, layer.parameter, layer.adapted(args[0] if args else None)))
            return holder(*args, **kwargs)

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [E, r, K] and s B [E, N, r]."""
        return expert_factors(self.A, self.B, self.active.scale, self.experts)

    def adapted(self, x: Any) -> Tensor:
        """W with the update, in W's dtype."""
        weight = self.own_parameter
        return (weight + self._update()).to(weight.dtype)

    def _update(self, dtype: torch.dtype | None = None) -> Tensor:
        """s B A in the parameter's shape."""
        A: Tensor = self.A
        B: Tensor = self.B
        if dtype is not None:
            A, B = A.to(dtype), B.to(dtype)
        A, B = A.view(self.experts, -1, A.shape[1]), B.view(B.shape[0], -1, self.experts).permute(2, 0, 1)
        update = torch.bmm(B, A) * self.active.scale.to(B.dtype)
        update = update.transpose(1, 2) if self.sideways else update
        return update if self.own_parameter.ndim == 3 else update[0]

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """What merging adds, fp32 in the parameter's shape."""
        return self._update(torch.float32)

    @torch.no_grad()
    def merge(
        self, safe: bool = True, *, into: str = "same", probe: Tensor | None = None, threshold: float = THRESHOLD
    ) -> MergeReport:
        """As a layer's; into its own or another dtype. The report is of all experts' rows [E N, K]."""
        if self.merged:
            raise RuntimeError("merge: the layer is merged already")
        if not self.has_active:
            raise RuntimeError(f"merge: the layer has no adapter {self.active_adapter!r}, expected an active one")
        check_choice("into", into, ("same", *DENSE))
        check_threshold(threshold)
        weight = self.own_parameter
        form = merged_format(into, weight)
        exact = weight.double() + self._update(torch.float64)
        stored = exact.to(form.dtype)
        if safe and not stored.isfinite().all():
            raise ValueError(f"merge: the merged weight has NaN or inf in {form.name}")
        rows = [self._rows(tensor) for tensor in (weight, exact, stored)]
        report = measure(
            type(self.holder).__name__,
            form.name,
            before=rows[0],
            exact=lambda _, which: rows[1][which],
            stored=rows[2],
            probe=probe_rows(probe, self.in_features, weight.device),
            threshold=threshold,
        )
        self._folded = _FoldedParameter(weight, form.dtype)  # type: ignore[assignment]
        self.holder._parameters[self.parameter] = nn.Parameter(stored, weight.requires_grad)
        self._settle()
        return report

    def _rows(self, weight: Tensor) -> Tensor:
        weight = weight.transpose(-2, -1) if self.sideways else weight
        return weight.reshape(-1, weight.shape[-1])

    def __getattr__(self, name: str) -> Any:
        # what a model asks its experts
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "base_layer" not in self.__dict__.get("_modules", {}):
                raise
            return getattr(super().__getattr__("base_layer"), name)


class _FoldedParameter:
    """The parameter that was there, or that with the adapter: whichever isn't in the module now. Another module may
    share the first.
    """

    def __init__(self, before: nn.Parameter, dtype: torch.dtype) -> None:
        self.before, self.inside = before, True
        self._after: nn.Parameter | None = None
        # of the one that is in the module, as it was put there
        self._dtype = dtype

    @torch.no_grad()
    def put(self, layer: LoraParameter, inside: bool) -> None:
        if inside == self.inside:
            return
        weight = layer.own_parameter
        if not inside:
            self._after = weight
        wanted = self._after if inside else self.before
        assert wanted is not None, "put aside before"
        # the model may have been moved or converted since
        dtype = wanted.dtype if weight.dtype == self._dtype else weight.dtype
        if (wanted.device, wanted.dtype) != (weight.device, dtype):
            wanted = nn.Parameter(wanted.detach().to(weight.device, dtype), wanted.requires_grad)
        layer.holder._parameters[layer.parameter] = wanted
        self._dtype = wanted.dtype
        self.inside = inside


def holder_of(base: nn.Module) -> nn.Module:
    """The module inside layers of its parameters."""
    while isinstance(base, LoraParameter):
        base = base.base_layer
    return base


@contextmanager
def _instead(module: nn.Module, name: str, value: Tensor) -> Iterator[None]:
    """Inside, an attribute of a module is this tensor; its parameters and their order are untouched."""
    module.__dict__[name] = value
    try:
        yield
    finally:
        del module.__dict__[name]
