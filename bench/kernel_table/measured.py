"""Modelled times beside what `make gpu` measured of the same kernels, from each `summary.json` of bench/results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lorafam.tune.points import Point

from ..gpu.parts import counters
from ..page import measured
from .cards import CARDS, Card
from .times import Modelled

NOTHING = "Nothing has been measured on a GPU yet (`make gpu`)."
HEAD = (
    "kernel", "modelled µs", "by events, µs", "over modelled", "by ncu or profiler, µs", "over modelled", "of the copy",
    "MB, modelled / counted", "issue slots, modelled / counted", "wavefronts, modelled / conflicts, counted",
)  # fmt: skip
Items = Mapping[str, Any]


class Call(NamedTuple):
    """A row of the table of times; `tokens` is 0 where they don't matter."""

    op: str
    N: int
    K: int
    tokens: int

    def __str__(self) -> str:
        about = f", {self.tokens} token{'s' * (self.tokens > 1)}" if self.tokens else ""
        into = " to bf16" if self.op == "nf4_dequantize" else ""
        return f"`{self.op}`{into}, {self.N} x {self.K}{about}"


Models = dict[Call, dict[Card, Modelled]]


def table(folder: Path, models: Models) -> list[str]:
    """A table a run, of every row that is modelled for its card; one sentence where there is no run."""
    lines: list[str] = []
    for path in sorted(folder.rglob("summary.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        gpu, items = results["gpu"], results["items"]
        about = ", ".join(f"{name} {results['versions'][name]}" for name in ("torch", "triton"))
        lines += [*([""] if lines else []), f"{gpu['name']}; {about}; code {results['code']}; {results['date']}", ""]
        card = card_of(gpu)
        if card is None:
            lines.append("No times are modelled for this card.")
            continue
        lines += [f"| {' | '.join(HEAD)} |", "|" + "---|" * len(HEAD)]
        copied = items.get("bench/peaks", {"cases": {}})["cases"].get("copy", {}).get("bytes_a_second")
        for call, cards in models.items():
            cells = [str(call), *_cells(cards[card], by_events(items, call), by_counters(items, call), copied)]
            lines.append(f"| {' | '.join(cells)} |")
    return lines or [NOTHING]


def card_of(gpu: Mapping[str, Any]) -> Card | None:
    """The modelled card that a GPU is: "H100" is the one of 132 multiprocessors, not every card of that name."""
    words = gpu["name"].replace("-", " ").split()
    architecture = "sm_" + gpu["compute_capability"].replace(".", "")
    for card in CARDS:
        same_chip = (card.architecture, card.multiprocessors) == (architecture, gpu["multiprocessors"])
        if same_chip and set(card.name.split()) <= set(words):
            return card
    return None


def by_events(items: Items, call: Call) -> float | None:
    """Seconds of the shipped configuration, as `lorafam tune` measures a kernel by itself."""
    point = str(Point(*call, rank=counters.RANK, dtype="bfloat16", storage="nf4"))
    for row in measured(items, "tune/", "point"):
        if row["point"] == point and row.get("shipped"):
            return row["shipped"]["seconds"]
    return None


def by_counters(items: Items, call: Call) -> Mapping[str, float | None]:
    """ncu's metrics of the call's kernel, or its time alone by torch's profiler; empty where there is none."""
    if (call.N, call.K) != (counters.N, counters.K):
        return {}
    for row in measured(items, "profile/", "kernels"):
        if row["call"] == counters.name_of(call.op, call.tokens):
            for one in row["kernels"]:
                if one["kernel"].startswith(f"{call.op}_kernel"):
                    return one["metrics"]
    return {}


def _cells(
    model: Modelled, events: float | None, metrics: Mapping[str, float | None], copied: float | None
) -> list[str]:
    nanoseconds = metrics.get("ns")
    counted = 1e-9 * nanoseconds if nanoseconds else None
    seconds = counted or events
    rate, issued = metrics.get("bytes/s"), metrics.get("issue slots %")
    conflicts = metrics.get("bank conflicts")
    cells = [f"{1e6 * model.seconds:.1f} {model.bound_by}"]
    for found in (events, counted):
        cells += [f"{1e6 * found:.1f}", f"{found / model.seconds:.2f}"] if found else ["-", "-"]
    cells.append(f"{100 * model.bytes / seconds / copied:.0f} %" if seconds and copied else "-")
    cells.append(f"{model.bytes / 1e6:.1f} / {rate * counted / 1e6:.1f}" if rate and counted else "-")
    issue = 100 * model.terms["issue"] / model.seconds
    cells.append(f"{issue:.0f} / {issued:.0f} %" if issued is not None else "-")
    known = conflicts is not None and model.wavefronts is not None
    cells.append(f"{model.wavefronts:.2e} / {conflicts:.2e}" if known else "-")
    return cells
