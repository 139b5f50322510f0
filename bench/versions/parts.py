"""What is run for each column, and what came of it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .. import junit
from .environment import Environment

# the one test of tests/compiled that belongs to the column "launched"
_LAUNCHES = "test_a_driver_launches_them"
_INTERPRETED = (
    "tests/backends/test_four_bit.py",
    "tests/backends/triton_gpu",
    "tests/ops",
    "tests/test_functional.py",
    "tests/test_grouped_lora_linear.py",
)


class Part(NamedTuple):
    """pytest's arguments, variables beside, and the columns that its tests belong to."""

    name: str
    arguments: tuple[str, ...]
    variables: dict[str, str]
    columns: dict[str, Callable[[str], bool]]


def _all(_: str) -> bool:
    return True


PARTS = (
    Part(
        "compiled",
        ("-m", "compiled", "tests/compiled"),
        {},
        {"compiled": lambda name: _LAUNCHES not in name, "launched": lambda name: _LAUNCHES in name},
    ),
    Part(
        "simulated",
        ("-n", "2", "-m", "simulated", "tests/backends/triton_gpu/test_every_configuration.py"),
        {"LORAFAM_NEED_PTXSIM": "1"},
        {"simulated": _all},
    ),
    Part("tests", ("-n", "2", "--dist", "worksteal"), {}, {"tests": _all}),
    Part(
        "interpreted",
        ("-n", "2", "--dist", "worksteal", *_INTERPRETED),
        {"LORAFAM_BACKEND": "interpret"},
        {"tests": _all},
    ),
)


def run(part: Part, environment: Environment, root: Path, minutes: float) -> dict[str, dict[str, Any]]:
    """Counts and failures by column. What ends before its tests are counted is an "error", never a pass."""
    report = environment.folder / f"{part.name}.xml"
    error = _run(part.arguments, part.variables, report, environment, root, minutes)
    return {column: _column(report, keep, error) for column, keep in part.columns.items()}


def run_again(tests: Iterable[str], environment: Environment, root: Path, minutes: float) -> tuple[set[str], set[str]]:
    """Of the tests of the column "tests" those that pass now, in every part that has them, and those that fail.

    Raises RuntimeError where a part doesn't come to its end.
    """
    tests, good, bad = list(tests), set[str](), set[str]()
    for part in PARTS:
        if "tests" not in part.columns:
            continue
        folders = tuple(argument for argument in part.arguments if argument.startswith("tests/"))
        named = [name for name in tests if not folders or name.startswith(folders)]
        if not named:
            continue
        report = environment.folder / f"{part.name}-again.xml"
        error = _run(("-n", "2", *named), part.variables, report, environment, root, minutes)
        if error:
            raise RuntimeError(error)
        good |= junit.passed(report)
        bad |= junit.outcome(report)["failures"].keys()
    return good - bad, bad


def _run(
    arguments: Sequence[str],
    own_variables: dict[str, str],
    report: Path,
    environment: Environment,
    root: Path,
    minutes: float,
) -> str:
    """Why pytest didn't come to its end; "" where it did."""
    report.unlink(missing_ok=True)
    # names that pytest takes
    options = (f"--junitxml={report}", "-o", "junit_family=xunit1")
    command = [str(environment.python), "-m", "pytest", *options, *arguments]
    # caches of its own: what another Triton or Numba compiled isn't this one's
    caches = {name: str(environment.folder / name.lower()) for name in ("TRITON_CACHE_DIR", "NUMBA_CACHE_DIR")}
    variables = {**environment.variables, **caches, "OMP_NUM_THREADS": "1", **own_variables}
    process = subprocess.Popen(command, cwd=root, env=variables, start_new_session=True)
    try:
        code = process.wait(minutes * 60)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return f"not finished in {minutes:g} minutes"
    # 1: tests failed, which the report tells by name
    return "" if code in (0, 1) else f"pytest ended with exit code {code}"


def _column(report: Path, keep: Callable[[str], bool], error: str) -> dict[str, Any]:
    if error:
        return {"error": error}
    try:
        found = junit.outcome(report, keep)
    except ValueError as wrong:
        return {"error": str(wrong)}
    return found if found["passed"] or found["failed"] else {"error": "no test ran"}


def merged(one: dict[str, Any] | None, other: dict[str, Any]) -> dict[str, Any]:
    """Two parts of one column."""
    if one is None or "error" in one or "error" in other:
        return one if one is not None and "error" in one else other
    counts = {key: one[key] + other[key] for key in ("passed", "failed", "skipped")}
    return {**counts, "failures": {**one["failures"], **other["failures"]}}
