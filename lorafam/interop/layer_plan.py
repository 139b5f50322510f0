"""Which path a PEFT layer takes, and why: asked in every forward, since anything may have changed since the last one.

What the fast paths can't do goes to PEFT's own code, which calls the modules: their hooks then run, sharded weights are
gathered, and errors are PEFT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..compat.torch import is_transformed
from ..methods.base_weight import base_weight, has_hooks
from ..ops.by_storage import FLOAT_DTYPES
from ..weights import NF4Weight
from .report import FUSED, LOW_RANK, PEFT
from .sharded import is_sharded

Tensor = torch.Tensor
PLAIN = "traced, vectorised or differentiated forward: plain operations are wanted"


class LayerPlan(NamedTuple):
    """The path; the active adapters it computes; the base's weight, where the path needs none of the base's code;
    whether the base is to run alone.
    """

    path: str
    reason: str
    adapters: tuple[str, ...] = ()
    weight: Tensor | NF4Weight | None = None
    dora: bool = False
    alone: bool = False


def layer_plan(layer: Any, x: Tensor | None = None, named: Sequence[str] | None = None) -> LayerPlan:
    """The plan of a LoRA or AdaLoRA linear layer of PEFT's; for tokens x, if they are given; of the adapters `named`,
    or of the active ones.
    """
    modules = layer._modules
    downs = modules["lora_A"]
    names = tuple(name for name in (layer.active_adapters if named is None else named) if name in downs)
    alone = without_adapter(layer, names)
    if alone is not None:
        return alone
    if transformed():
        return LayerPlan(PEFT, PLAIN)
    kinds = {type(layer.lora_variant[name]).__name__ for name in names if name in layer.lora_variant}
    dora = kinds == {"DoraLinearVariant"}
    if kinds and not dora:
        return LayerPlan(PEFT, f"{', '.join(sorted(kinds))}: computed by PEFT alone")
    if len(names) > 1 and (dora or "lora_E" in modules):
        return LayerPlan(PEFT, f"{len(names)} active adapters that aren't plain LoRA")
    for name in names:
        problem = _factors(layer, name, dora)
        if problem:
            return LayerPlan(PEFT, problem)
    dropped = [name for name in names if drops(modules["lora_dropout"][name])]
    if dropped and len(names) > 1:
        return LayerPlan(PEFT, "several active adapters with a dropout mask each")
    return with_base(layer, names, dora, bool(dropped), x, _device(layer, names[0]))


def rows_plan(layer: Any, x: Tensor, adapter_names: Sequence[str]) -> LayerPlan:
    """The plan of a batch x whose rows name their adapter: fused in one product, or PEFT's."""
    used = tuple(dict.fromkeys(name for name in adapter_names if name in layer._modules["lora_A"]))
    if x.ndim < 2 or len(x) != len(adapter_names) or "lora_E" in layer._modules:
        return LayerPlan(PEFT, "adapters a row: not for this layer or this batch")
    plan = layer_plan(layer, x, used)
    if plan.path != FUSED or plan.dora:
        return LayerPlan(PEFT, f"adapters a row: {plan.reason}", alone=plan.alone)
    if any(drops(layer._modules["lora_dropout"][name]) for name in used):
        return LayerPlan(PEFT, "adapters a row, with dropout")
    if any(layer._modules["lora_B"][name].bias is not None for name in used):
        return LayerPlan(PEFT, "adapters a row, with a bias each")
    return plan


def transformed() -> bool:
    """Whether jit traces, torch.func transforms or forward-mode AD runs, which autograd Functions stop."""
    if torch.compiler.is_compiling():
        return False
    return torch.jit.is_tracing() or is_transformed()


def without_adapter(layer: Any, names: tuple[str, ...]) -> LayerPlan | None:
    """The plan of a layer whose base runs alone."""
    if layer._disable_adapters:
        return LayerPlan(PEFT, "the adapters are disabled: the base layer runs alone", alone=True)
    if layer.merged_adapters:
        return LayerPlan(PEFT, f"{', '.join(layer.merged_adapters)} is merged: the base layer runs alone", alone=True)
    return None if names else LayerPlan(PEFT, "no active adapter here: the base layer runs alone", alone=True)


def _factors(layer: Any, name: str, dora: bool) -> str:
    """Why an adapter's tensors can't be taken from its modules; empty where they can."""
    modules = layer._modules
    dropout = modules["lora_dropout"][name]
    if type(dropout) not in (nn.Identity, nn.Dropout):
        return f"the dropout of {name} is a {type(dropout).__name__}"
    if "lora_E" in modules:
        factors = [modules[part]._parameters[name] for part in ("lora_A", "lora_E", "lora_B")]
    else:
        linears = [modules["lora_A"][name], modules["lora_B"][name]]
        if dora:
            linears.append(modules["lora_magnitude_vector"][name])
        if any(map(has_hooks, (*linears, dropout))):
            return "hooks on the adapter's modules: they run"
        if any(type(linear) is not nn.Linear for linear in linears[:2]):
            return f"the factors of {name} aren't plain linear layers"
        factors = [linear._parameters["weight"] for linear in linears]
    if any(map(is_sharded, factors)):
        return f"the factors of {name} are sharded now: asked again in each forward"
    if any(type(factor) is not nn.Parameter for factor in factors):
        return f"the factors of {name} are {type(factors[0]).__name__}: sharded or of a class of its own"
    if any(factor.ndim != 2 for factor in factors[:2]):
        return f"the factors of {name} are gathered when their modules run"
    if any(factor.dtype not in FLOAT_DTYPES for factor in factors):
        return f"the factors of {name} are {factors[0].dtype}"
    if any(factor.device != factors[0].device for factor in factors):
        return f"the tensors of {name} are on several devices"
    return ""


def _device(layer: Any, name: str) -> torch.device:
    down = layer._modules["lora_A"]
    return (down._parameters[name] if "lora_E" in layer._modules else down[name].weight).device


def drops(dropout: nn.Module) -> bool:
    """Whether a mask is drawn."""
    return type(dropout) is nn.Dropout and dropout.training and dropout.p > 0


def with_base(
    layer: Any, names: tuple[str, ...], dora: bool, dropped: bool, x: Tensor | None, device: torch.device
) -> LayerPlan:
    """The plan of adapters that can be computed, on `device`: by what their base is."""
    base = layer._modules["base_layer"]
    if any(map(is_sharded, (x, *base._parameters.values()))):
        return LayerPlan(PEFT, "the base weight or the input is a DTensor")
    try:
        weight, reason = base_weight(base)
    except ValueError as error:
        return LayerPlan(PEFT, str(error))
    if isinstance(weight, Tensor):
        if weight.ndim != 2:
            return LayerPlan(PEFT, "the base weight is gathered when its layer runs")
        if type(weight) not in (nn.Parameter, Tensor):
            weight, reason = None, f"the base weight is a {type(weight).__name__}"
        elif weight.dtype not in FLOAT_DTYPES:
            reason, weight = f"the base weight is {weight.dtype}", None
    if weight is not None and device != weight.device:
        return LayerPlan(PEFT, f"the base weight is on {weight.device}, the adapter elsewhere")
    if weight is not None and x is not None:
        if x.device != weight.device or x.dtype not in FLOAT_DTYPES:
            return LayerPlan(PEFT, f"the input is {x.dtype} on {x.device}")
        if x.shape[-1:] != weight.shape[1:]:
            return LayerPlan(PEFT, f"the input is {list(x.shape)}, the base weight {list(weight.shape)}")
        if isinstance(weight, Tensor) and x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return LayerPlan(PEFT, f"the input is {x.dtype}, the base weight {weight.dtype}")
        if isinstance(weight, NF4Weight) and _narrows(base, x):
            weight, reason = None, f"the base multiplies in {base.compute_dtype}, the adapter in {x.dtype}"
    if weight is not None:
        return LayerPlan(FUSED, reason, names, weight, dora)
    if dora and dropped:
        return LayerPlan(PEFT, f"DoRA with dropout needs two products with the weight; {reason}")
    return LayerPlan(LOW_RANK, reason, names, None, dora)


def _narrows(base: nn.Module, x: Tensor) -> bool:
    """Whether the base computes in a narrower dtype than the adapter: not under autocast, where both do."""
    wanted = getattr(base, "compute_dtype", None)
    if wanted is None or torch.is_autocast_enabled(x.device.type):
        return False
    return torch.promote_types(wanted, x.dtype) != wanted
