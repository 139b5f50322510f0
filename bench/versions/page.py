"""docs/versions.md, from what the runs left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .matrix import COLUMNS, Row

_SHOWN = ("torch", "triton", "transformers", "peft", "numba", "Python")
HEAD = """\
# Versions

Written by `make versions`: what was tried, with what came of it. A combination that isn't here wasn't tried. Nothing of
this ran on a GPU: kernels are compiled for eight architectures and looked at (compiled), held to what a driver refuses
(launched), run on a CPU as compiled code (simulated); tests are those of `make test`. "At" is the day and the commit.
"""


def page(rows: Sequence[Row], results: dict[str, dict[str, Any]]) -> str:
    """`results`: by row, "at", and "versions" and "columns", or "error", why it has no environment."""
    head = (*_SHOWN, *COLUMNS, "at")
    lines = [HEAD, "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    notes: list[str] = []
    for row in rows:
        found = results.get(row.name, {})
        versions = found.get("versions", row.packages)
        cells = [_cell(row, column, found, notes) for column in COLUMNS]
        at = "; again ".join(filter(None, (found.get("at"), found.get("again_at"))))
        lines.append("| " + " | ".join([*(versions.get(name) or "" for name in _SHOWN), *cells, at]) + " |")
    return "\n".join([*lines, "", *(f"{index}. {note}" for index, note in enumerate(notes, 1))]).rstrip() + "\n"


def _cell(row: Row, column: str, ran: dict[str, Any], notes: list[str]) -> str:
    def noted(text: str, note: str) -> str:
        if note not in notes:
            notes.append(note)
        return f"{text} ({notes.index(note) + 1})"

    if column not in row.runs:
        return noted("not run", row.left_out)
    if "error" in ran:
        return noted("not run", ran["error"])
    outcome = ran.get("columns", {}).get(column)
    if outcome is None:
        return noted("not run", "not tried yet")
    if "error" in outcome:
        return noted("not finished", outcome["error"])
    counts = f"{outcome['passed']} passed"
    if outcome.get("again"):
        counts += f" ({outcome['again']} when tried again)"
    if outcome["skipped"]:
        counts += f", {outcome['skipped']} skipped"
    if not outcome["failed"]:
        return counts
    told = "; ".join(f"`{name}`: {reason}" for name, reason in outcome["failures"].items())
    return noted(f"**{outcome['failed']} failed**, {counts}", told)


def failed(rows: Sequence[Row], results: dict[str, dict[str, Any]]) -> list[str]:
    """The cells that should have run and didn't pass, "row: column"."""
    bad = []
    for row in rows:
        columns = results.get(row.name, {}).get("columns", {})
        for column in row.runs:
            outcome = columns.get(column, {"error": "not run"})
            if "error" in outcome or outcome["failed"]:
                bad.append(f"{row.name}: {column}")
    return bad
