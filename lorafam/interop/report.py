"""What `accelerate` says: one row a PEFT layer and a frozen one, with the path it takes now and why."""

from __future__ import annotations

import re
from typing import NamedTuple

FUSED = "fused"
LOW_RANK = "base + low rank"
PEFT = "PEFT"
FROZEN = "frozen"
PATHS = (FUSED, LOW_RANK, PEFT, FROZEN)


class Row(NamedTuple):
    """A layer's name in the module that was accelerated, its path, and the reason.

    "fused": one product of lorafam's with base weight and adapter. "base + low rank": the base layer's own forward,
    then lorafam's low-rank update. "PEFT": PEFT's own code, as before. "frozen": a large frozen layer without an
    adapter, on the CPU.
    """

    name: str
    path: str
    reason: str


class AccelerateReport:
    """`rows` [Row]; `note` says why where there is none. As a string: a table, equal layers of a model on one line."""

    def __init__(self, rows: list[Row], note: str = "") -> None:
        self.rows, self.note = rows, note

    def count(self, path: str) -> int:
        """How many layers take a path."""
        return sum(row.path == path for row in self.rows)

    def __str__(self) -> str:
        if not self.rows:
            return f"lorafam: no layer accelerated: {self.note}"
        groups: dict[tuple[str, str, str], int] = {}
        for row in self.rows:
            key = (re.sub(r"(?<![^.])\d+(?![^.])", "*", row.name) or "(the layer)", row.path, row.reason)
            groups[key] = groups.get(key, 0) + 1
        lines = [("layers", "", "path", "reason")]
        lines += [(name, f"x{count}" if count > 1 else "", path, why) for (name, path, why), count in groups.items()]
        widths = [max(len(line[column]) for line in lines) for column in range(3)]
        table = ["  ".join([*map(str.ljust, line[:3], widths), line[3]]).rstrip() for line in lines]
        counts = ", ".join(f"{self.count(path)} {path}" for path in PATHS if self.count(path))
        return "\n".join([*table, f"{len(self.rows)} layers: {counts}"])

    def __repr__(self) -> str:
        return f"AccelerateReport({', '.join(f'{self.count(path)} {path}' for path in PATHS)})"
