"""Gated MLPs of other libraries, down(act(gate(x)) ∘ up(x)): made to save gate's and up's outputs alone.

A module is known by its forward's source, not by its name. Its class becomes one with a forward of ours, in which gate,
up and down are called as before, with all their hooks and adapters; only what stands between is `gated_activation`.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from ..autograd import gated_activation
from .base_weight import has_hooks
from .change_class import change_class

Tensor = torch.Tensor


class Names(NamedTuple):
    """What a gated MLP calls its parts."""

    down: str
    act: str
    gate: str
    up: str


class Gated:
    """What such a module was, under the name by which accelerated layers are found."""

    def __init__(self, original: type[nn.Module], names: Names) -> None:
        self.original, self.names = original, names

    def swap_back(self, mlp: Any) -> None:
        """Makes the module what it was."""
        del mlp._lorafam
        change_class(mlp, self.original)


class GatedMlp(nn.Module):
    """Before a gated MLP's class: its forward."""

    _lorafam: Gated

    def forward(self, x: Tensor) -> Tensor:
        down, act, gate, up = (getattr(self, name) for name in self._lorafam.names)
        g, u = gate(x), up(x)
        kind = None if has_hooks(act) else _kind(act)
        return down(act(g) * u if kind is None else gated_activation(g, u, kind))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # no module has the class by its name
        found: Any = super().__reduce_ex__(protocol)
        return _new, (self._lorafam.original,), *found[2:]


@functools.cache
def _class_of(original: Any) -> Any:
    """The class of such modules that were of the class `original`."""
    return type(original.__name__, (GatedMlp, original), {"__module__": original.__module__})


def _new(original: Any) -> Any:
    found = _class_of(original)
    return found.__new__(found)


def gated_mlps(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The gated MLPs in `module` by name, those that are made such too; none whose forward somebody has changed."""
    for name, child in module.named_modules():
        if isinstance(child, GatedMlp):
            yield name, child
        elif not {"_lorafam", "forward"} & child.__dict__.keys():
            kind: Any = type(child)
            names = _names(kind)
            if names is not None and all(isinstance(getattr(child, part, None), nn.Module) for part in names):
                yield name, child


def gate_mlps(module: nn.Module) -> list[str]:
    """Makes the gated MLPs in `module` save gate's and up's outputs alone; the names of their last layers."""
    last = []
    found: list[tuple[str, Any]] = list(gated_mlps(module))
    for name, mlp in found:
        if not isinstance(mlp, GatedMlp):
            kind: Any = type(mlp)
            mlp._lorafam = Gated(kind, _names(kind))  # type: ignore[arg-type]
            change_class(mlp, _class_of(kind))
        last.append(f"{name}.{mlp._lorafam.names.down}" if name else mlp._lorafam.names.down)
    return last


def ungate_mlps(module: nn.Module) -> None:
    """Makes every such module in `module` what it was."""
    for child in module.modules():
        if isinstance(child, GatedMlp):
            child._lorafam.swap_back(child)


def _kind(act: Any) -> str | None:
    """The activation by `gated_activation`'s name; None where it is another."""
    kind = type(act)
    if kind is nn.SiLU:
        return "silu"
    if kind is nn.GELU:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(act.approximate)
    if kind.__module__ != "transformers.activations":
        return None
    if kind.__name__ == "SiLUActivation":
        return "silu"
    function = getattr(act, "act", None)
    if function is nn.functional.gelu:
        return "gelu"
    if isinstance(function, functools.partial) and function.func is nn.functional.gelu and not function.args:
        return {"none": "gelu", "tanh": "gelu_tanh"}.get(function.keywords.get("approximate", "none"))
    return None


@functools.cache
def _names(kind: Any) -> Names | None:
    """The parts of a class whose forward is `return self.down(self.act(self.gate(x)) * self.up(x))`, or the same in two
    statements; None for every other.
    """
    try:
        (function,) = ast.parse(textwrap.dedent(inspect.getsource(kind.forward))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        # its source isn't there
        return None
    if not isinstance(function, ast.FunctionDef) or function.decorator_list or len(function.args.args) != 2:
        return None
    others = (function.args.posonlyargs, function.args.kwonlyargs, function.args.vararg, function.args.kwarg)
    x = function.args.args[1].arg
    value = _returned(function.body)
    if any(others) or value is None:
        return None
    match value:
        case ast.Call(
            func=down,
            args=[
                ast.BinOp(
                    left=ast.Call(
                        func=act, args=[ast.Call(func=gate, args=[ast.Name(id=a)], keywords=[])], keywords=[]
                    ),
                    op=ast.Mult(),
                    right=ast.Call(func=up, args=[ast.Name(id=b)], keywords=[]),
                )
            ],
            keywords=[],
        ) if a == b == x:
            parts = [_part(one) for one in (down, act, gate, up)]
            return None if None in parts else Names(*parts)  # type: ignore[arg-type]
    return None


def _returned(body: list[ast.stmt]) -> ast.expr | None:
    """The expression that a body returns, by a name at most."""
    if isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    match body:
        case [ast.Return(value=value)]:
            return value
        case [ast.Assign(targets=[ast.Name(id=name)], value=value), ast.Return(value=ast.Name(id=again))] if (
            name == again
        ):
            return value
    return None


def _part(node: ast.expr) -> str | None:
    """The name in `self.name`."""
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name
    return None
