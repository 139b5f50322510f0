"""One op beside fp64: every call of the self-check, which between them launch every shipped configuration."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..cases import Case, Context
from ..compiled import counted
from ..device import device


def cases(context: Context, op: str) -> Iterator[Case]:
    from lorafam.backends import eager, self_check

    seen: Counter[str] = Counter()
    for name, what, arguments in self_check._cases(eager, device().where):
        if name == op:
            seen[what] += 1
            title = what if seen[what] == 1 else f"{what} ({seen[what]})"
            yield Case(title, functools.partial(compared, op, arguments))


def compared(op: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Raises AssertionError where the op is worse than the rule allows."""
    from lorafam.backends import eager
    from lorafam.backends.self_check import compare, expected, results_of

    with counted() as counts:
        got = results_of(op, getattr(device().ops, op), arguments)
        device().synchronize()
    compare(op, got, expected(op, getattr(eager, op), arguments))
    return dict(counts)
