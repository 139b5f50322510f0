"""From pytest-benchmark's JSON to rows and a table: seconds, and how many times longer the others take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .contenders import TITLES

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
    lines = []
    for entry in results["benchmarks"]:
        info, seconds = entry["extra_info"], entry["stats"]["median"]
        ours = times[info["name"], info["size"], info["tokens"]].get(f"{info['direction']} lorafam")
        lines.append(
            {
                "method": info["name"],
                **{name: info[name] for name in ("size", "tokens", "direction", "dtype", "rank", "contender")},
                "median_seconds": seconds,
                "ratio": None if ours is None else seconds / ours,
            }
        )
    return lines


def others(results: Mapping[str, Any]) -> list[str]:
    """The contenders that were timed beside lorafam, in the order of `contenders.TITLES`."""
    measured = {entry["extra_info"]["contender"] for entry in results["benchmarks"]}
    return [name for name in TITLES if name in measured and name != "lorafam"]


def table(results: Mapping[str, Any], digits: int = 2) -> str:
    """A line a case, milliseconds with `digits` after the point."""
    columns = others(results)
    width = 8 + 11 * len(columns)
    lines = [
        f"{'':28}{'forward':^{width}}    {'forward + backward':^{width}}".rstrip(),
        f"{'method':9}{'size':>6}{'tokens':>8}     "
        + "    ".join(2 * [f"{'ms':>8}" + "".join(f"{TITLES[other]:>11}" for other in columns)]),
    ]
    for (name, size, tokens), times in medians(results).items():
        halves = []
        for direction in DIRECTIONS:
            ours = times.get(f"{direction} lorafam")
            slower = ratios(times, direction) if ours else {}
            shown = [f"{1e3 * ours:.{digits}f}" if ours else "-"]
            shown += [f"{slower[other]:.2f}x" if other in slower else "-" for other in columns]
            halves.append(f"{shown[0]:>8}" + "".join(f"{cell:>11}" for cell in shown[1:]))
        lines.append(f"{name:9}{size:>6}{tokens:>8}     " + "    ".join(halves))
    return "\n".join(lines)
