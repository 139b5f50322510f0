"""What is kept of a point, and the rows of the launch table that follow from all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..kernels.launch_config import LaunchConfig
from ..kernels.launch_rows import SIZES, Row
from .candidates import as_dict
from .points import Point
from .search import Outcome

Record = dict[str, Any]

# which table a record's row is of: launch configurations, or paths
ROWS, PATHS = "rows", "paths"


def record(point: Point, outcome: Outcome) -> Record:
    """Plain data: the point, when its result applies, the shipped and the best configuration with their seconds."""
    question = outcome.question

    def timed(name: str, config: LaunchConfig | None) -> dict[str, Any] | None:
        return None if config is None else {**as_dict(config), "seconds": outcome.seconds[name]}

    sizes = {size: getattr(question, size) for size in SIZES if getattr(question, size)}
    weight = {} if question.weight is None else {"weights": [question.weight]}
    return {
        "point": point._asdict(),
        "table": ROWS,
        "finished": outcome.finished,
        "kernel": question.kernel,
        "conditions": {**sizes, "dtypes": [question.dtype], **weight},
        "shipped": timed("shipped", outcome.shipped),
        **({"failure": outcome.failure} if outcome.failure else {}),
        "best": timed("best", outcome.best),
        "measured": outcome.measured,
        "wrong": outcome.wrong,
        "broken": outcome.broken,
    }


def nothing(point: Point, why: str) -> Record:
    """The record of a point at which there is nothing to measure."""
    counts = {"measured": 0, "wrong": 0, "broken": 1}
    return {"point": point._asdict(), "finished": True, "shipped": None, "best": None, "failure": why, **counts}


def is_won(found: Record) -> bool:
    """Whether something beat the shipped configuration, or is right where that isn't."""
    best, shipped = found.get("best"), found.get("shipped")
    return best is not None and (shipped is None or configuration(best) != configuration(shipped))


def configuration(found: dict[str, Any]) -> dict[str, Any]:
    """Without the seconds."""
    return {name: value for name, value in found.items() if name != "seconds"}


def rows_of(records: Iterable[Record], table: str = ROWS) -> dict[str, list[Row]]:
    """Rows by kernel, or by op for PATHS: one for each point that was won.

    Where nothing was, the shipped rows go on to decide, which has to be said where the row of a larger point would else
    apply.

    Rows apply up to their sizes and the first that fits is taken, so they are in ascending order: a row that would take
    another's point has larger sizes and comes after it.
    """
    by_kernel: dict[str, list[Row]] = {}
    ordered = sorted((one for one in records if one.get("table") == table), key=_sizes)
    for place, one in enumerate(ordered):
        rows = by_kernel.setdefault(one["kernel"], [])
        if is_won(one):
            rows.append({**one["conditions"], **configuration(one["best"])})
        elif any(is_won(other) and _covers(other, one) for other in ordered[place + 1 :]):
            rows.append({**one["conditions"], "shipped": True})
    return {kernel: rows for kernel, rows in by_kernel.items() if rows}


def _sizes(one: Record) -> list[int]:
    return [one["conditions"].get(size, 0) for size in SIZES]


def _covers(larger: Record, smaller: Record) -> bool:
    same = all(larger["conditions"].get(key) == smaller["conditions"].get(key) for key in ("dtypes", "weights"))
    at_least = all(a >= b for a, b in zip(_sizes(larger), _sizes(smaller), strict=True))
    return larger["kernel"] == smaller["kernel"] and same and at_least
