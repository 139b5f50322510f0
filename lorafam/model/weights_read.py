"""What the source of a module's classes says of its children's weights: which it reads, and under which settings."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

# asked of a weight without computing with it
_ASKED = ("dtype", "device", "shape", "size", "data_ptr", "requires_grad", "is_meta", "is_cuda", "numel", "ndim", "dim")
# methods that run before there are adapters
_AT_THE_START = ("__init__", "reset_parameters", "_reset_parameters", "_init_weights")
# what may stand in a condition that holds for good: a module's settings and constants
_SETTLED = (
    *(ast.Expression, ast.BoolOp, ast.UnaryOp, ast.Compare, ast.Attribute, ast.Name, ast.Constant, ast.Load),
    *(ast.boolop, ast.unaryop, ast.cmpop),
)


class Read(NamedTuple):
    """The path of a child whose weight is read, and the conditions on the way there with the value each must have."""

    name: str
    conditions: tuple[tuple[Any, bool], ...]

    def happens_in(self, module: nn.Module) -> bool:
        """Whether a module's settings let it get there."""
        return all(_holds(*condition, module) for condition in self.conditions)


@functools.cache
def weights_read(kind: Any) -> tuple[Read, ...]:
    """Those of every method that a class has, its own or inherited."""
    reads: list[Read] = []
    seen: set[str] = set()
    for base in kind.__mro__:
        if base is nn.Module:
            break
        for method in _methods(base):
            if method.name not in seen and method.name not in _AT_THE_START:
                reads += _reads_in(method.body, ())
            calls_on = any(isinstance(node, ast.Name) and node.id == "super" for node in ast.walk(method))
            if not calls_on:
                seen.add(method.name)
    return tuple(reads)


def _holds(test: Any, wanted: bool, module: nn.Module) -> bool:
    """Whether a condition has the value that leads to a read; one that can't be evaluated may have it."""
    try:
        return bool(eval(test, {"__builtins__": {}}, {"self": module})) is wanted
    except Exception:
        return True


def _methods(kind: Any) -> list[ast.FunctionDef]:
    try:
        source = inspect.getsource(kind)
        tree = ast.parse(textwrap.dedent(source)).body[0]
    except (OSError, TypeError, SyntaxError):
        # a class made at run time has no source to ask
        return []
    return [node for node in getattr(tree, "body", []) if isinstance(node, ast.FunctionDef)]


def _reads_in(nodes: list[Any], conditions: tuple[tuple[Any, bool], ...]) -> Iterator[Read]:
    for node in nodes:
        if isinstance(node, ast.If | ast.IfExp):
            yield from _reads_in([node.test], conditions)
            settled = _is_settled(node.test)
            code = compile(ast.Expression(node.test), "<condition>", "eval") if settled else None
            for part, wanted in ((node.body, True), (node.orelse, False)):
                inner = (*conditions, (code, wanted)) if settled else conditions
                yield from _reads_in(part if isinstance(part, list) else [part], inner)
            continue
        if _is_asking(node):
            continue
        name = _weight_of(node)
        if name:
            yield Read(name, conditions)
        yield from _reads_in(list(ast.iter_child_nodes(node)), conditions)


def _is_settled(test: ast.expr) -> bool:
    nodes = list(ast.walk(test))
    return all(isinstance(node, _SETTLED) for node in nodes) and not any(
        (isinstance(node, ast.Name) and node.id != "self")
        or (isinstance(node, ast.Attribute) and node.attr == "training")
        for node in nodes
    )


def _is_asking(node: Any) -> bool:
    """`self.x.weight.dtype` and the like, `isinstance(self.x.weight, …)`."""
    if isinstance(node, ast.Attribute):
        return node.attr in _ASKED and bool(_weight_of(node.value))
    call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
    return call and bool(_weight_of(node.args[0]))


def _weight_of(node: Any) -> str:
    """x of `self.x.weight`, where that is read, dots in it where x is a child's child; empty for anything else."""
    if not (isinstance(node, ast.Attribute) and node.attr == "weight" and isinstance(node.ctx, ast.Load)):
        return ""
    names: list[str] = []
    owner: Any = node.value
    while isinstance(owner, ast.Attribute):
        names.insert(0, owner.attr)
        owner = owner.value
    return ".".join(names) if isinstance(owner, ast.Name) and owner.id == "self" else ""
