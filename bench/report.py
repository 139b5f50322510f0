"""From pytest-benchmark's JSON to rows and a table: seconds, and how many times longer the others take."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Key = tuple[str, int, int]
DIRECTIONS = ("forward", "train")


def medians(results: Mapping[str, Any]) -> dict[Key, dict[str, float]]:
    """(method, size, tokens) → "direction contender" → median seconds."""
    found: dict[Key, dict[str, float]] = {}
    for entry in results["benchmarks"]:
        info = entry["extra_info"]
        case = found.setdefault((info["name"], info["size"], info["tokens"]), {})
        case[f"{info['direction']} {info['contender']}"] = entry["stats"]["median"]
    return found


def ratios(times: Mapping[str, float], direction: str) -> dict[str, float]:
    """Contender → its median over lorafam's: above 1 lorafam is faster."""
    ours = times[f"{direction} lorafam"]
    return {
        key.split()[1]: seconds / ours
        for key, seconds in times.items()
        if key.startswith(f"{direction} ") and not key.endswith(" lorafam")
    }


def rows(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One a measurement: what was measured, its median in seconds, and `ratio`, that median over lorafam's of the same
    case (None where lorafam wasn't measured).
    """
    times = medians(results)
    found = []
    for entry in results["benchmarks"]:
        info, seconds = entry["extra_info"], entry["stats"]["median"]
        ours = times[info["name"], info["size"], info["tokens"]].get(f"{info['direction']} lorafam")
        found.append(
            {
                "method": info["name"],
                **{name: info[name] for name in ("size", "tokens", "direction", "dtype", "contender")},
                "median_seconds": seconds,
                "ratio": None if ours is None else seconds / ours,
            }
        )
    return found


def table(results: Mapping[str, Any], digits: int = 2) -> str:
    """A line a case, milliseconds with `digits` after the point."""
    lines = [
        f"{'':28}{'forward':^26}{'forward + backward':^28}",
        f"{'method':9}{'size':>6}{'tokens':>8}     " + 2 * f"{'ms':>8}{'eager':>8}{'PEFT':>8}    ",
    ]
    for (name, size, tokens), times in medians(results).items():
        line = f"{name:9}{size:>6}{tokens:>8}     "
        for direction in DIRECTIONS:
            if f"{direction} lorafam" not in times:
                line += f"{'-':>8}{'-':>8}{'-':>8}    "
                continue
            faster = ratios(times, direction)
            shown = (f"{faster[other]:.2f}x" if other in faster else "-" for other in ("eager", "peft"))
            line += (
                f"{1e3 * times[f'{direction} lorafam']:>8.{digits}f}" + "".join(f"{cell:>8}" for cell in shown) + "    "
            )
        lines.append(line.rstrip())
    return "\n".join(lines)


def write_json(path: Path, value: Any) -> None:
    """The file is there whole or as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
