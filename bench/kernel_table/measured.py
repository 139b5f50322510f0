"""What `make gpu` measured, from bench/results/*.json: whole layers, of which the kernels are a part."""

from __future__ import annotations

import json
from pathlib import Path


def table(folder: Path) -> list[str]:
    """A line for each case of lorafam's forward on each GPU; one sentence where there is no file."""
    lines = ["| GPU | method | size | tokens | forward, µs, measured |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        for row in results["benchmark"]["rows"]:
            if (row["contender"], row["direction"]) == ("lorafam", "forward"):
                cells = (results["gpu"]["name"], row["method"], row["size"], row["tokens"])
                lines.append(f"| {' | '.join(map(str, cells))} | {1e6 * row['median_seconds']:.1f} |")
    return lines if len(lines) > 2 else ["Nothing has been measured on a GPU yet (`make gpu`)."]
