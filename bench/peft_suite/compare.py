"""What differs between an accelerated run of tests and a plain one of those that didn't pass in it."""

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
    """Counts of tests, run and passed accelerated; `broken` passed plain alone: name → what the accelerated run said.
    `known` are those of the broken ones that are accounted for: name → why; `absent` are files that can't be imported.
    """

    run: int
    passed: int
    broken: dict[str, str]
    known: dict[str, str]
    absent: dict[str, str]
    layers: int
    forwards: int


def doubtful(accelerated: Mapping[str, Outcome]) -> list[str]:
    """The tests that didn't pass, to be run plain: failed ones and skipped ones."""
    return [name for name, test in accelerated.items() if test.result not in (PASSED, NOT_IMPORTED)]


def compare(plain: Mapping[str, Outcome], accelerated: Mapping[str, Outcome], known: Mapping[str, str]) -> Comparison:
    """`plain`: of the doubtful ones; `known`: name → why a test may break."""
    broken = sorted(name for name, test in plain.items() if test.result == PASSED)
    return Comparison(
        len(accelerated),
        sum(test.result == PASSED for test in accelerated.values()),
        {name: _told(accelerated[name]) for name in broken if name not in known},
        {name: known[name] for name in broken if name in known},
        {name: test.reason for name, test in {**plain, **accelerated}.items() if test.result == NOT_IMPORTED},
        sum(test.layers for test in accelerated.values()),
        sum(test.forwards for test in accelerated.values()),
    )


def _told(test: Outcome) -> str:
    return f"{test.result}: {test.reason}"
