"""Point after point within a time, each kept as soon as it is measured; a later session goes on where one stopped."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from ..backends.triton_gpu.prepared import forget
from ..backends.triton_gpu.user_table import read
from ..backends.user_files import keep
from ..kernels.launch_config import LaunchConfig
from ..kernels.launch_table import config_of, prefer, preferred
from ..kernels.paths import prefer_paths, preferred_paths
from .check import GpuLostError
from .gpu import Gpu
from .points import PATHS as PATH_POINTS
from .points import Point
from .route import fastest_route
from .search import NotLaunchedError, search
from .table import PATHS, ROWS, Record, configuration, is_won, nothing, record, rows_of
from .workload import workload


class TuneReporter(Protocol):
    """Told what happens."""

    def note(self, text: str) -> None: ...

    def begin(self, done: int, total: int) -> None: ...

    def starts(self, point: Point) -> None: ...

    def ends(self, point: Point, found: Record) -> None: ...

    def end(self) -> None: ...


class Summary(NamedTuple):
    """Of the points asked for: how many there are, are finished, and were won."""

    points: int
    finished: int
    won: int


def tune(
    points: Sequence[Point], gpu: Gpu, path: Path, reporter: TuneReporter, *, seconds: float, again: bool = False
) -> Summary:
    """Measures for about `seconds`: each point gets its part of the time that is left, so that some of everything is
    known at the end. A point whose time was up is measured anew, from the best it found, in what is left or next time.

    Puts the rows in effect, and leaves them in the file `path`. Raises GpuLostError where a configuration takes the GPU
    down; it is kept as such, and left out next time. Raises OSError where the file can't be written.
    """
    records = {} if again else _kept(path, gpu, reporter)
    todo = [point for point in points if not _finished(records, point)]
    if records and len(todo) < len(points):
        reporter.note(f"goes on: {len(points) - len(todo)} of {len(points)} points are in {path} (--again starts over)")
    before = preferred(gpu.architecture), preferred_paths(gpu.architecture)
    end = gpu.clock() + seconds
    reporter.begin(len(points) - len(todo), len(points))
    try:
        # time that later points didn't need goes to those that were cut short
        while todo and gpu.clock() < end:
            for place, point in enumerate(todo):
                left = end - gpu.clock()
                if left <= 0:
                    break
                reporter.starts(point)
                deadline = gpu.clock() + left / (len(todo) - place)
                records[point] = _measured(point, gpu, deadline, records.get(point, {}), records, path)
                _write(path, gpu, records)
                reporter.ends(point, records[point])
            todo = [point for point in todo if not _finished(records, point)]
    finally:
        reporter.end()
        # launches with a candidate's configuration must not be repeated
        forget()
        found = records.values()
        prefer(gpu.architecture, rows_of(found, ROWS) if records else before[0])
        prefer_paths(gpu.architecture, rows_of(found, PATHS) if records else before[1])
    done = [records[point] for point in points if point in records]
    return Summary(len(points), sum(one["finished"] for one in done), sum(map(is_won, done)))


def _measured(
    point: Point, gpu: Gpu, deadline: float, known: Record, records: dict[Point, Record], path: Path
) -> Record:
    work = workload(point, gpu.device)
    avoid = known.get("avoid", [])
    start: LaunchConfig | None = None
    if known.get("best") and point.op not in PATH_POINTS:
        start = config_of(configuration(known["best"]), gpu.architecture)
    try:
        if point.op in PATH_POINTS:
            prefer(gpu.architecture, rows_of(records.values(), ROWS))
            return fastest_route(point, work, gpu, avoid)
        outcome = search(work, gpu, deadline=deadline, start=start, avoid=avoid)
    except NotLaunchedError as error:
        return nothing(point, str(error))
    except GpuLostError as error:
        lost = {"point": point._asdict(), "finished": False, **known, "avoid": [*avoid, error.tried]}
        _write(path, gpu, {**records, point: lost})
        raise
    return {**record(point, outcome), **({"avoid": avoid} if avoid else {})}


def _kept(path: Path, gpu: Gpu, reporter: TuneReporter) -> dict[Point, Record]:
    try:
        found = read(path, gpu.architecture)
        return {} if found is None else {Point(**one["point"]): one for one in found["points"]}
    except (ValueError, TypeError, KeyError) as error:
        reporter.note(f"starts over: {error}")
        return {}


def _finished(records: dict[Point, Record], point: Point) -> bool:
    return point in records and bool(records[point].get("finished"))


def _write(path: Path, gpu: Gpu, records: dict[Point, Record]) -> None:
    content: dict[str, Any] = {
        "gpu": gpu.model,
        "architecture": gpu.architecture,
        "versions": {name: importlib.metadata.version(name) for name in ("lorafam", "triton")},
        "points": list(records.values()),
        **{table: rows_of(records.values(), table) for table in (ROWS, PATHS)},
    }
    keep(path, content)
