"""What differs between a plain and an accelerated run of the same tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

PASSED = "passed"
# of a whole file
NOT_IMPORTED = "not imported"


class Outcome(NamedTuple):
    """What became of a test (pytest's words), layers accelerated in it, forwards on lorafam's paths, and a reason."""

    result: str
    layers: int = 0
    forwards: int = 0
    reason: str = ""


class Comparison(NamedTuple):
    """Counts of tests; `broken` passed plain alone, `mended` accelerated alone: name → what the other run said. `known`
    are those of the broken ones that are accounted for: name → why; `absent` are files that can't be imported.
    """

    run: int
    passed_plain: int
    passed_accelerated: int
    broken: dict[str, str]
    mended: dict[str, str]
    known: dict[str, str]
    absent: dict[str, str]
    layers: int
    forwards: int


def compare(plain: Mapping[str, Outcome], accelerated: Mapping[str, Outcome], known: Mapping[str, str]) -> Comparison:
    """A test that is missing from a run hasn't passed there. `known`: name → why a test may break."""
    passed = [{name for name, test in tests.items() if test.result == PASSED} for tests in (plain, accelerated)]
    broken = sorted(passed[0] - passed[1])
    return Comparison(
        len(plain.keys() | accelerated.keys()),
        len(passed[0]),
        len(passed[1]),
        {name: _told(accelerated.get(name)) for name in broken if name not in known},
        {name: _told(plain.get(name)) for name in sorted(passed[1] - passed[0])},
        {name: known[name] for name in broken if name in known},
        {name: test.reason for name, test in {**plain, **accelerated}.items() if test.result == NOT_IMPORTED},
        sum(test.layers for test in accelerated.values()),
        sum(test.forwards for test in accelerated.values()),
    )


def _told(test: Outcome | None) -> str:
    return f"{test.result}: {test.reason}" if test else "didn't run"
