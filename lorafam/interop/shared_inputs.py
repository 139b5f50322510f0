"""Projections that get the same x (q, k and v; gate and up) computed together, by the first of them that is called.

They are found by their names. The first computes all outputs and keeps those of the others until these are called: with
the very same x, unchanged and in the same modes, else they compute alone. What is kept is gone with the last of them,
at the latest with the first's next call.
"""

from __future__ import annotations

import inspect
import re
import threading
import weakref
from typing import Any, NamedTuple

import torch
from torch import nn

from .. import functional as F
from ..compat.torch import is_recomputed_or_backward
from ..methods.base_weight import has_hooks
from ..weights import NF4Weight
from . import fast_forward
from .layer_plan import LayerPlan, drops
from .report import FUSED

Tensor = torch.Tensor

# in the order in which models call them
NAMES = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("gate_proj", "up_proj"),
    ("wi_0", "wi_1"),
    ("w1", "w3"),
)
# arguments of a module whose keys are of something else than its queries
_OTHER_INPUT = re.compile("key_value_states|encoder|context|^(key|value|kv)s?$")


class _Computed(NamedTuple):
    """Outputs by the layer's place, and for what they were computed."""

    x: Tensor
    version: int
    modes: tuple[Any, ...]
    outputs: dict[int, Tensor]


class _Here(threading.local):
    """A Python thread's own."""

    kept: _Computed | None = None


class SharedInput:
    """Accelerated layers of one module, by their places in the order of calls; the first computes."""

    def __init__(self, names: tuple[str, ...], apart: str = "") -> None:
        self.names, self.apart = names, apart
        # a model must not wait for the garbage collector
        self._layers: list[weakref.ref[Any] | None] = [None] * len(names)
        self._here = _Here()

    def __reduce__(self) -> Any:
        # the copies of the layers join it themselves
        return SharedInput, (self.names, self.apart)

    def join(self, place: int, layer: Any) -> None:
        """Takes a free place."""
        if self.layer(place) is None:
            self._layers[place] = weakref.ref(layer)

    def layer(self, place: int) -> Any:
        """The layer at a place, or None."""
        found = self._layers[place]
        return None if found is None else found()

    def others(self, place: int) -> str:
        """The names of the rest."""
        return ", ".join(name for other, name in enumerate(self.names) if other != place)

    def kept_for(self, layer: Any, x: Tensor) -> Tensor | None:
        """A layer's output of x, where the first one has computed it."""
        kept, place = self._here.kept, layer._lorafam.place
        if kept is None or place == 0 or self.layer(place) is not layer:
            return None
        y = kept.outputs.pop(place, None)
        if not kept.outputs:
            self._here.kept = None
        if y is None:
            return None
        if x is not kept.x:
            self._fall_apart(f"{self.names[place]} gets another input than {self.names[0]}")
            return None
        same = x._version == kept.version and kept.modes == _modes(x) and not layer.merged_adapters
        return y if same and not layer._disable_adapters else None

    def compute(self, layer: Any, plan: LayerPlan, x: Tensor) -> Tensor | None:
        """The first layer's output of x; those of the others are kept. None where they are computed apart."""
        if layer is not self.layer(0) or self.apart or x.is_inference():
            return None
        self._here.kept = None
        if why_alone(layer, plan):
            return None
        layers, plans = [layer], [plan]
        for place in range(1, len(self.names)):
            other = self.layer(place)
            if other is None or has_hooks(other):
                return None
            found = other.lorafam_plan(x)
            if why_alone(other, found):
                return None
            layers.append(other)
            plans.append(found)
        if _unlike(layers, plans):
            return None
        first, *rest = together(layers, plans, x)
        self._here.kept = _Computed(x, x._version, _modes(x), dict(enumerate(rest, 1)))
        return first

    def why_apart(self) -> str:
        """Why the layers are computed one by one now; empty where together."""
        layers = [self.layer(place) for place in range(len(self.names))]
        if self.apart or None in layers:
            return self.apart or "one of them is gone"
        plans = [layer.lorafam_plan() for layer in layers]
        for name, layer, plan in zip(self.names, layers, plans, strict=True):
            reason = why_alone(layer, plan) or ("hooks" if layer is not layers[0] and has_hooks(layer) else "")
            if reason:
                return f"{name}: {reason}"
        return _unlike(layers, plans)

    def _fall_apart(self, reason: str) -> None:
        # under checkpointing the forward is run again, and must then do what it did
        if not is_recomputed_or_backward():
            self.apart = reason


def why_alone(layer: Any, plan: LayerPlan) -> str:
    """Why a layer's product can't be one of several; empty where it can."""
    if plan.path != FUSED:
        return f"its path is {plan.path}"
    if plan.dora:
        return "DoRA scales its own output"
    if any(drops(layer._modules["lora_dropout"][name]) for name in plan.adapters):
        return "dropout draws a mask for each"
    return ""


def form_groups(module: nn.Module) -> None:
    """Makes the groups of all accelerated layers in `module`, new ones in place of those that were."""
    for parent in module.modules():
        children = parent._modules
        for names in NAMES:
            members = tuple(name for name in names if "_lorafam" in getattr(children.get(name), "__dict__", ()))
            layers = tuple(children[name] for name in members)
            if (
                len(members) < 2
                or _gets_other_input(parent)
                or not all(getattr(one, "lorafam_groups", False) for one in layers)
            ):
                continue
            group = SharedInput(members)
            for place, layer in enumerate(layers):
                state: Any = layer._lorafam  # type: ignore[union-attr]
                state.group, state.place = group, place
                group.join(place, layer)


def _gets_other_input(parent: nn.Module) -> bool:
    return any(_OTHER_INPUT.search(name) for name in inspect.signature(parent.forward).parameters)


def _modes(x: Tensor) -> tuple[Any, ...]:
    kind = x.device.type
    return torch.is_grad_enabled(), torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)


def _unlike(layers: list[Any], plans: list[LayerPlan]) -> str:
    """What differs between the base weights that must not."""
    kinds = {type(plan.weight) is NF4Weight for plan in plans}
    if len(kinds) > 1:
        return "dense and 4-bit weights"
    dtypes = {getattr(layer._modules["base_layer"], "compute_dtype", None) for layer in layers}
    if kinds == {True} and len(dtypes) > 1:
        return "compute dtypes differ"
    if len({plan.weight.device for plan in plans if plan.weight is not None}) > 1:
        return "weights on several devices"
    return ""


def together(layers: list[Any], plans: list[LayerPlan], x: Tensor) -> tuple[Tensor, ...]:
    """The outputs of all layers."""
    As, Bs, scales, biases = zip(*map(_parts, layers, plans), strict=True)
    weights: Any = [plan.weight for plan in plans]

    def product(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(F.grouped_lora_linear(x, weights, As, Bs, scales, biases))

    return fast_forward.in_base_dtype(layers[0]._modules["base_layer"], weights[0], x, product)


def _parts(layer: Any, plan: LayerPlan) -> tuple[Tensor, Tensor, Tensor | float, Tensor | None]:
    """A, B, the scale and the whole bias of a layer."""
    A, B, scale, bias = layer.lorafam_parts(plan)
    return A, B, scale, fast_forward.added(getattr(layer._modules["base_layer"], "bias", None), bias)
