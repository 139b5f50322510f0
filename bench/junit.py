"""From pytest's JUnit XML to counts and the names of what failed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

LONGEST_REASON = 300


def outcome(path: Path, keep: Callable[[str], bool] = lambda _: True) -> dict[str, Any]:
    """Of the tests whose names `keep` takes: {"passed", "failed", "skipped": numbers of tests, "failures": name → first
    line of the reason}.

    A test that fails and then can't be torn down has failed once. Raises ValueError where the file isn't whole.
    """
    cases = [case for case in _cases(path) if keep(_name(case))]
    skipped: set[str] = set()
    failures: dict[str, str] = {}
    for case in cases:
        for result in case:
            if result.tag in ("failure", "error"):
                failures.setdefault(_name(case), _reason(result))
            elif result.tag == "skipped":
                skipped.add(_name(case))
    names = {_name(case) for case in cases}
    return {
        "passed": len(names - failures.keys() - skipped),
        "failed": len(failures),
        "skipped": len(skipped - failures.keys()),
        "failures": failures,
    }


def passed(path: Path) -> set[str]:
    """The tests that passed, by name. Raises ValueError as `outcome`."""
    bad = ("failure", "error", "skipped")
    cases = _cases(path)
    return {_name(case) for case in cases} - {_name(case) for case in cases if any(part.tag in bad for part in case)}


def _cases(path: Path) -> list[ElementTree.Element]:
    try:
        return list(ElementTree.parse(path).getroot().iter("testcase"))
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{path}: not a whole JUnit file: {error}") from error


def _name(case: ElementTree.Element) -> str:
    """As pytest takes it: file::test[parameters] with `junit_family=xunit1`, else module::test[parameters]."""
    return "::".join(filter(None, (case.get("file") or case.get("classname"), case.get("name"))))


def _reason(result: ElementTree.Element) -> str:
    lines = (result.get("message") or result.text or "").strip().splitlines()
    return lines[0][:LONGEST_REASON] if lines else result.tag
