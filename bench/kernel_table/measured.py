"""What `make gpu` measured, from bench/results/*/summary.json: whole layers, of which the kernels are a part."""

from __future__ import annotations

import json
from pathlib import Path

from ..page import measured


def table(folder: Path) -> list[str]:
    """A line for each case of lorafam's forward on each GPU; one sentence where there is no file."""
    lines = ["| GPU | launch table | method | N x K | tokens | forward, µs, measured |", "|---|---|---|---|---|---|"]
    for path in sorted(folder.glob("*/summary.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        for row in measured(results["items"], "bench/", "contender"):
            if (row["contender"], row["direction"]) == ("lorafam", "forward"):
                shape = " x ".join(map(str, row["shape"]))
                cells = (results["gpu"]["name"], row["table"], row["method"], shape, row["tokens"])
                lines.append(f"| {' | '.join(map(str, cells))} | {1e6 * row['gpu']:.1f} |")
    return lines if len(lines) > 2 else ["Nothing has been measured on a GPU yet (`make gpu`)."]
