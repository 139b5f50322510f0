"""docs/architectures.md, from what the runs left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..page import escaped, grid
from .architecture import KINDS, Architecture
from .outcome import FAILS, REFUSED, WORKS

Results = Mapping[str, Mapping[str, Any]]
COLUMNS = ("forward", "backward", "generate", "Trainer", "save, load", "merge")
WAYS = ("adapt", "adapt NF4", "accelerate", "accelerate 4-bit")
HEAD = """\
# Architectures

Written by `make architectures`: tiny models with random weights, LoRA on every linear layer but the output head, in
four ways: `lorafam.adapt` on dense and on NF4 weights, and PEFT's model after `lorafam.accelerate`, on dense weights
and on bitsandbytes' 4-bit ones. A cell is "yes" where all four ways are right, on a CPU in fp32; a dash where a column
doesn't apply. What is right, by column:

- forward: with adapters and without, by the ratio rule: errors against fp64 at most 3 times PEFT's (twice the limit for
  one layer, since the errors of a whole model are few independent ones);
- backward: the gradient of every factor, by the same rule;
- generate: PEFT's tokens, greedy and with three beams;
- Trainer: transformers' Trainer resumed from a checkpoint ends in the bits of a run without a break;
- save, load: plain PEFT reads the file and gives the bits it gives with these factors, lorafam its own bits;
- merge: as unmerged, by the ratio rule; saved and loaded by transformers the same bits; `lorafam merge` on files
  likewise. Accelerated in 4 bits, where PEFT rounds the update away: PEFT's bits.
"""


def page(rows: Sequence[Architecture], results: Results, of: Mapping[str, str]) -> str:
    """`results`: by name, "layers", "columns", "seconds" and "of", or "error"; `of`: this run's code and versions."""
    notes: list[str] = []
    body = []
    for kind in KINDS:
        lines = [_line(row, results.get(row.name, {}), of, notes) for row in rows if row.kind == kind]
        if lines:
            body += [f"\n## {kind.capitalize()}\n", grid(("", "model", "layers", *COLUMNS), lines)]
    whole = [row for row in rows if works(results.get(row.name, {}))]
    seconds = sum(results[row.name].get("seconds", 0.0) for row in rows if row.name in results)
    said = ", ".join(f"{name} {version}" for name, version in of.items() if name != "code")
    summary = (
        f"{len(whole)} of {len(rows)} architectures work in every column that applies. {said}. "
        f"{seconds / 60:.0f} minutes of one core."
    )
    return (
        "\n".join([HEAD, summary, *body, "", *(f"{index}. {note}" for index, note in enumerate(notes, 1))]).rstrip()
        + "\n"
    )


def works(result: Mapping[str, Any]) -> bool:
    """Whether a row is right in every way of every column that it has."""
    ways = [one for column in result.get("columns", {}).values() for one in column.values()]
    return bool(ways) and all(one["outcome"] == WORKS for one in ways)


def failed(rows: Sequence[Architecture], results: Results) -> list[str]:
    """What should be right and isn't, "name: column, way: why"."""
    bad = []
    for row in rows:
        result = results.get(row.name, {"error": "not tried"})
        if "error" in result:
            bad.append(f"{row.name}: {result['error']}")
        for column, ways in result.get("columns", {}).items():
            bad += [
                f"{row.name}: {column}, {way}: {one['why']}" for way, one in ways.items() if one["outcome"] == FAILS
            ]
    return bad


def _line(row: Architecture, result: Mapping[str, Any], of: Mapping[str, str], notes: list[str]) -> list[str]:
    def noted(text: str, note: str) -> str:
        note = escaped(note)
        if note not in notes:
            notes.append(note)
        return f"{text} ({notes.index(note) + 1})"

    name = noted(row.name, row.note) if row.note else row.name
    if "columns" not in result:
        why = result.get("error", "not tried yet")
        return [name, f"`{row.model}`", "", *[noted("not run", why)] * len(COLUMNS)]
    if result["of"] != of:
        name = noted(name, "of an earlier code or other versions")
    cells = [_cell(result["columns"].get(column), noted) for column in COLUMNS]
    return [name, f"`{row.model}`", _layers(result["layers"]), *cells]


def _layers(layers: Mapping[str, str]) -> str:
    counts = list(dict.fromkeys(layers[way] for way in WAYS if way in layers))
    return "; ".join(counts)


def _cell(ways: Mapping[str, Mapping[str, str]] | None, noted: Any) -> str:
    if ways is None:
        return "–"
    outcomes = {way: ways[way] for way in WAYS if way in ways}
    if all(one["outcome"] == WORKS for one in outcomes.values()):
        return "yes"
    parts = []
    for way, one in outcomes.items():
        if one["outcome"] == WORKS:
            parts.append(f"{way}: yes")
        else:
            told = "refused" if one["outcome"] == REFUSED else "**no**"
            parts.append(f"{way}: {noted(told, one['why'])}")
    return "; ".join(parts)
