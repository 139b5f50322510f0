"""compute-sanitizer over the smallest calls: accesses out of bounds (memcheck), races in shared memory (racecheck)."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from ..cases import BAD, Case, Context, LeftOutError
from ..device import device
from ..plan import CHECKED_OPS

PROGRAM = "compute-sanitizer"
SUMMARY = {
    "memcheck": re.compile(r"========= ERROR SUMMARY: (\d+) errors?"),
    "racecheck": re.compile(r"========= RACECHECK SUMMARY: (\d+) hazards? displayed"),
}
ALL = "every op"
SECONDS = 240.0


def cases(context: Context, tool: str) -> Iterator[Case]:
    """All ops in one process; one by one where that finds something, so that each is named."""
    yield Case(ALL, functools.partial(clean, tool, CHECKED_OPS), expects=90, limit=SECONDS + 20)
    if context.record.cases[ALL]["outcome"] in BAD:
        for op in CHECKED_OPS:
            yield Case(op, functools.partial(clean, tool, (op,)), expects=30, limit=SECONDS + 20)


def clean(tool: str, ops: Sequence[str]) -> dict[str, Any]:
    """Raises RuntimeError, with the first findings, unless the tool finds nothing; LeftOutError where it can't tell."""
    program = device().tool(PROGRAM)
    if program is None:
        raise LeftOutError(f"{PROGRAM} is not installed")
    watched = [sys.executable, "-m", "lorafam.bench.gpu.one_call", *ops]
    command = [program, "--tool", tool, "--target-processes", "all", *watched]
    try:
        done = device().run_tool(command, SECONDS)
    except subprocess.TimeoutExpired:
        # slow, not wrong: a kernel that hangs does so without the tool too
        raise LeftOutError(f"not done after {SECONDS:.0f} s") from None
    return judged(tool, done.stdout + done.stderr, done.returncode)


def judged(tool: str, output: str, code: int) -> dict[str, Any]:
    """From what the tool printed."""
    summary = SUMMARY[tool].search(output)
    lines = [line.removeprefix("=========").strip() for line in output.splitlines() if line.startswith("=========")]
    findings = [line for line in lines if re.match(r"(Invalid|Error|Race|Program hit|Misaligned|Uninitialized)", line)]
    if summary is None:
        last = output.strip().splitlines()[-1:] or [""]
        raise RuntimeError(f"{PROGRAM} gave no summary, code {code}: {last[0]}")
    if int(summary[1]):
        raise RuntimeError(f"{summary[1]} found: {'; '.join(findings[:3])}")
    if code:
        raise RuntimeError(f"nothing found, but what it watched ended with code {code}: {output.strip()[-300:]}")
    return {"calls": sum(line.startswith("done: ") for line in output.splitlines())}
