"""PEFT's layer classes with another forward: a layer is made one by changing its class, so that its parameters, their
names and everything else of it stay as they are.

A class has its original's name, so that `repr` and error messages are PEFT's; it is found again by its qualified name,
in a pickle too.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch

from ..backends.selection import tell_of_detour
from ..methods.change_class import change_class
from . import fast_forward
from .embedding import embedding_forward, embedding_plan
from .experts import experts_forward, experts_plan
from .layer_plan import LayerPlan, layer_plan, rows_plan
from .norms import Norms
from .report import FUSED, LOW_RANK, PEFT
from .scalings import Scalings
from .shared_inputs import SharedInput
from .vera import vera_forward, vera_plan

Tensor = torch.Tensor
_SLOWER = {FUSED: (LOW_RANK, PEFT), LOW_RANK: (PEFT,)}


class LayerState:
    """What an accelerated layer has besides: what its class was, and what is kept for its forwards."""

    def __init__(self, original: type, repacks: bool | None) -> None:
        self.original, self.repacks = original, repacks
        self.norms = Norms()
        self.group: SharedInput | None = None
        self.place = 0
        # the path that the report said
        self.reported = PEFT

    def __reduce__(self) -> Any:
        kept = {name: getattr(self, name) for name in ("group", "place", "reported")}
        return LayerState, (self.original, self.repacks), kept

    def tell(self, found: LayerPlan) -> None:
        """Warns once where a forward takes a slower way than the report said, unless the base was to run alone."""
        if found.path in _SLOWER.get(self.reported, ()) and not found.alone:
            tell_of_detour(f"accelerate: {found.path} where the report says {self.reported}: {found.reason}")

    def swap_back(self, layer: Any) -> None:
        """Makes the layer what it was."""
        del layer._lorafam
        if self.group is not None:
            self.group.apart = "a layer of them was decelerated"
        if self.repacks:
            layer.get_base_layer().support_avx512bf16_for_cpu = self.repacks
        if hasattr(layer, "scaling"):
            layer.scaling = dict(layer.scaling)
        change_class(layer, self.original)


class FastLayer:
    """Before a layer class of PEFT's: a forward that takes the fast path where it may."""

    _lorafam: LayerState
    # whether layers of one x can be computed together
    lorafam_groups = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if self._lorafam.group is not None:
            self._lorafam.group.join(self._lorafam.place, self)

    def lorafam_plan(self, x: Tensor | None = None) -> LayerPlan:
        """The path for tokens x, or for any, and why."""
        return layer_plan(self, x)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        # other arguments are for PEFT or for the base
        if not args and not kwargs:
            group = None if torch.compiler.is_compiling() else self._lorafam.group
            y = None if group is None else group.kept_for(self, x)
            if y is not None:
                return y
            plan = self.lorafam_plan(x)
            if plan.path is not self._lorafam.reported:
                self._lorafam.tell(plan)
            if plan.path != PEFT:
                y = None if group is None else group.compute(self, plan, x)
                return self.lorafam_forward(x, plan) if y is None else y
        elif not args and kwargs.keys() == {"adapter_names"} and not torch.compiler.is_compiling():
            plan = self.lorafam_rows_plan(x, kwargs["adapter_names"])
            if plan.path != PEFT:
                return fast_forward.lora_by_row(self, plan, x, kwargs["adapter_names"])
            self._lorafam.tell(plan)
        return super().forward(x, *args, **kwargs)  # type: ignore[misc]

    def lorafam_rows_plan(self, x: Tensor, adapter_names: Sequence[str]) -> LayerPlan:
        """The path for a batch whose rows name their adapter."""
        return rows_plan(self, x, adapter_names)

    def lorafam_forward(self, x: Tensor, found: LayerPlan) -> Tensor:
        return (fast_forward.dora if found.dora else fast_forward.lora)(self, found, x)

    def lorafam_parts(self, found: LayerPlan) -> fast_forward.Parts:
        """A, B, the scale and the adapter's bias."""
        return fast_forward.lora_parts(self, found)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        self._lorafam.norms.forget()
        super().merge(*args, **kwargs)  # type: ignore[misc]

    def unmerge(self) -> None:
        self._lorafam.norms.forget()
        super().unmerge()  # type: ignore[misc]


class FastAdaLora(FastLayer):
    def lorafam_forward(self, x: Tensor, found: LayerPlan) -> Tensor:
        return fast_forward.adalora(self, found, x)

    def lorafam_parts(self, found: LayerPlan) -> fast_forward.Parts:
        return fast_forward.adalora_parts(self, found)


class FastVera(FastLayer):
    lorafam_groups = False

    def lorafam_plan(self, x: Tensor | None = None) -> LayerPlan:
        return vera_plan(self, x)

    def lorafam_rows_plan(self, x: Tensor, adapter_names: Sequence[str]) -> LayerPlan:
        return LayerPlan(PEFT, "adapters a row: not for this layer or this batch")

    def lorafam_forward(self, x: Tensor, found: LayerPlan) -> Tensor:
        return vera_forward(self, found, x)


class FastEmbedding(FastLayer):
    def lorafam_plan(self, x: Tensor | None = None) -> LayerPlan:
        return embedding_plan(self)

    def lorafam_forward(self, x: Tensor, found: LayerPlan) -> Tensor:
        return embedding_forward(self, found, x)


class FastExperts(FastLayer):
    def lorafam_plan(self, x: Tensor | None = None) -> LayerPlan:
        return experts_plan(self, x)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) == 2 and not kwargs:
            compiled = torch.compiler.is_compiling()
            plan = LayerPlan(PEFT, "a compiled graph has the experts' own code") if compiled else self.lorafam_plan(x)
            if plan.path != PEFT:
                return experts_forward(self, x, *args)
            self._lorafam.tell(plan)
        return super().forward(x, *args, **kwargs)


# where PEFT has a layer class, its name, and what goes before it; those of absent libraries aren't there
_CLASSES: tuple[tuple[str, str, type[FastLayer]], ...] = (
    ("peft.tuners.lora.layer", "Linear", FastLayer),
    ("peft.tuners.lora.layer", "Embedding", FastEmbedding),
    ("peft.tuners.lora.layer", "ParamWrapper", FastExperts),
    ("peft.tuners.lora.bnb", "Linear4bit", FastLayer),
    ("peft.tuners.lora.bnb", "Linear8bitLt", FastLayer),
    ("peft.tuners.lora.gptq", "GPTQLoraLinear", FastLayer),
    ("peft.tuners.lora.awq", "AwqLoraLinear", FastLayer),
    ("peft.tuners.lora.aqlm", "AqlmLoraLinear", FastLayer),
    ("peft.tuners.lora.eetq", "EetqLoraLinear", FastLayer),
    ("peft.tuners.lora.hqq", "HqqLoraLinear", FastLayer),
    ("peft.tuners.lora.torchao", "TorchaoLoraLinear", FastLayer),
    ("peft.tuners.lora.inc", "IncLoraLinear", FastLayer),
    ("peft.tuners.lora.te", "TeLinear", FastLayer),
    ("peft.tuners.adalora.layer", "SVDLinear", FastAdaLora),
    ("peft.tuners.adalora.bnb", "SVDLinear4bit", FastAdaLora),
    ("peft.tuners.adalora.bnb", "SVDLinear8bitLt", FastAdaLora),
    ("peft.tuners.adalora.gptq", "SVDQuantLinear", FastAdaLora),
    ("peft.tuners.vera.layer", "Linear", FastVera),
    ("peft.tuners.vera.bnb", "Linear4bit", FastVera),
    ("peft.tuners.vera.bnb", "Linear8bitLt", FastVera),
)


def _define(module: str, name: str, fast: type[FastLayer]) -> tuple[type, type] | None:
    try:
        original = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None
    if original is None:
        return None
    qualified = f"{fast.__name__}_{name}"
    made = type(qualified, (fast, original), {"__doc__": original.__doc__, "__module__": __name__})
    made.__name__ = name
    globals()[qualified] = made
    return original, made


FAST: dict[type, type] = dict(pair for pair in (_define(*row) for row in _CLASSES) if pair is not None)


def swap(layer: Any) -> None:
    """Makes a layer of a class in `FAST` an accelerated one."""
    original = type(layer)
    base = layer.get_base_layer()
    repacks = getattr(base, "support_avx512bf16_for_cpu", None)
    layer._lorafam = LayerState(original, repacks)
    if repacks:
        # an evaluation forward of bitsandbytes would repack the weight in place, for its own kernel only
        base.support_avx512bf16_for_cpu = False
    if hasattr(layer, "scaling"):
        layer.scaling = Scalings(layer.scaling)
    change_class(layer, FAST[original])


def prepare(layer: Any) -> None:
    """Makes the scalings' tensors before a graph is compiled: one made inside would be another the next time."""
    scaling = getattr(layer, "scaling", None)
    if isinstance(scaling, Scalings):
        for name in scaling:
            scaling.tensor(name, next(layer.parameters()).device)
