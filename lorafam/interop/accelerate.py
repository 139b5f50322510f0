"""`accelerate(model)`: PEFT's layers on lorafam's products, in place, and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..methods import AdapterLayer
from ..methods.frozen_linear import freeze_layer, frozen_layers, is_head
from ..methods.gated_mlp import Gated, gate_mlps
from .report import FROZEN, PEFT, AccelerateReport, Row
from .sharded import is_unit


def accelerate(module: nn.Module) -> AccelerateReport:
    """Makes every PEFT layer in `module` (a model, or a single layer) compute with lorafam's products, in place.

    LoRA, rsLoRA, DoRA, AdaLoRA and VeRA on nn.Linear, Conv1D, bitsandbytes' layers, LoRA around every other quantised
    base that PEFT knows. Parameters, their names, the state_dict, the optimiser's state and PEFT's interface stay as
    they are; adapters added later through the PEFT model are accelerated too. What a layer does is decided in each of
    its forwards: what the fast paths can't do goes to PEFT's own code. Calling it again does no harm and reports anew.

    A large frozen nn.Linear without an adapter, the output head above all, multiplies on the CPU by lorafam's product
    where that is faster here. The report has a row for each layer. Raises TypeError for anything but a module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a model or a layer, got {type(module).__name__}")
    layers_here = _layers(module)
    if not layers_here:
        return AccelerateReport([], _why_nothing(module))
    from .fast_layers import FAST, FastLayer, prepare, swap
    from .shared_inputs import form_groups
    from .tuners import swap_tuners

    rows = []
    inside = ""
    for name, layer in layers_here:
        kind = f"{type(layer).__module__.split('.')[-2]}.{type(layer).__name__}"
        if inside and name.startswith(inside):
            rows.append(Row(name, PEFT, "part of a layer that merges for each forward"))
            continue
        if type(layer) in FAST:
            swap(layer)
        if isinstance(layer, FastLayer):
            prepare(layer)
            plan = layer.lorafam_plan()
            layer._lorafam.reported = plan.path
            rows.append(Row(name, plan.path, plan.reason))
        else:
            inside = f"{name}."
            rows.append(Row(name, PEFT, f"{kind} has no faster path"))
    swap_tuners(module)
    form_groups(module)
    remade = gate_mlps(module)
    layers = dict(layers_here)
    frozen = [_frozen(name, layer) for name, layer in frozen_layers(module, (_layer_class(),))]
    rows = [_with_mlp(_with_group(row, layers[row.name]), remade) for row in rows]
    return AccelerateReport(rows + frozen)


def _frozen(name: str, layer: nn.Linear) -> Row:
    """The row of a frozen layer without an adapter, which is accelerated."""
    freeze_layer(layer)
    reason = "the faster of lorafam's product and the platform's, timed at the first call"
    return Row(name, FROZEN, f"{reason}; a loss without its logits" if is_head(layer.weight) else reason)


def decelerate(module: nn.Module) -> None:
    """Takes `accelerate` back: every layer is what it was, and computes the same bits as before.

    Raises RuntimeError where FSDP2 has changed a layer's class since.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module: expected a model or a layer, got {type(module).__name__}")
    _undo(_fast_modules(module))


@contextmanager
def accelerated(module: nn.Module) -> Iterator[AccelerateReport]:
    """`with accelerated(model) as report:`; what was accelerated before stays so."""
    before = set(map(id, _fast_modules(module)))
    report = accelerate(module)
    try:
        yield report
    finally:
        _undo([child for child in _fast_modules(module) if id(child) not in before])


def _with_group(row: Row, layer: Any) -> Row:
    """The row of a layer that has siblings with the same input, with what becomes of that."""
    state = layer.__dict__.get("_lorafam")
    if state is None or state.group is None or row.path == PEFT:
        return row
    others, apart = state.group.others(state.place), state.group.why_apart()
    told = f"not with {others}: {apart}" if apart else f"with {others}, one x"
    return row._replace(reason=f"{row.reason}; {told}")


def _with_mlp(row: Row, remade: list[str]) -> Row:
    """The row of a gated MLP's last layer, with what becomes of its input."""
    if row.name not in remade or row.path == PEFT:
        return row
    return row._replace(reason=f"{row.reason}; its input is formed again in the backward")


def _fast_modules(module: nn.Module) -> list[Any]:
    """The layers, tuners and MLPs that are accelerated."""
    return [child for child in module.modules() if "_lorafam" in child.__dict__]


def _undo(modules: list[Any]) -> None:
    for module in modules:
        if is_unit(module) and not isinstance(module._lorafam, Gated):
            raise RuntimeError(
                f"decelerate: a {type(module).__name__} is sharded by itself, its class is FSDP2's; decelerate before"
            )
    for module in modules:
        module._lorafam.swap_back(module)


def _layers(module: nn.Module) -> list[tuple[str, Any]]:
    """PEFT's layers by name."""
    if "peft.tuners.tuners_utils" not in sys.modules:
        return []
    return [(name, child) for name, child in module.named_modules() if isinstance(child, _layer_class())]


def _layer_class() -> type:
    return sys.modules["peft.tuners.tuners_utils"].BaseTunerLayer


def _why_nothing(module: nn.Module) -> str:
    if any(isinstance(child, AdapterLayer) for child in module.modules()):
        return "the layers of this model are lorafam's own"
    return f"no layer of this {type(module).__name__} is one of PEFT's; get_peft_model first"
