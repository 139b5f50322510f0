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
    from lorafam.backends import eager
    from lorafam.backends.self_check_cases import Draw

    draw = functools.cache(lambda number: Draw(number, eager, device().where))
    for title, checked in titled(op):
        yield Case(title, functools.partial(compared, checked, draw))


def titled(op: str) -> Iterator[tuple[str, Any]]:
    """The self-check's cases of an op by names of their own."""
    from lorafam.backends import self_check_cases

    seen: Counter[str] = Counter()
    for case in self_check_cases.cases():
        if case.op == op:
            seen[case.what] += 1
            yield case.what if seen[case.what] == 1 else f"{case.what} ({seen[case.what]})", case


def compared(case: Any, draw: Any) -> dict[str, Any]:
    """Raises AssertionError where the op is worse than the rule allows."""
    from lorafam.backends import comparison, eager
    from lorafam.reference.ratio_rule import MIN_ELEMENTS

    def run(*arguments: Any) -> Any:
        results = getattr(device().ops, case.op)(*arguments)
        device().synchronize()
        return results

    with counted() as counts:
        comparison.check(case, run, getattr(eager, case.op), draw, MIN_ELEMENTS)
    return dict(counts)
