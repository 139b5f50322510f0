"""`lorafam tune` on the console: a bar and a line a point, and the rows of a launch table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table


class TuneConsole:
    """A `TuneReporter` that writes to a rich console; the bar is shown in a terminal alone."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def note(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)

    def begin(self, done: int, total: int) -> None:
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}", markup=False))
            self._bar = Progress(*columns, console=self._console)
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done)

    def starts(self, point: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description=str(point))

    def ends(self, point: Any, found: dict[str, Any]) -> None:
        if self._bar is not None and found["finished"]:
            self._bar.advance(self._task)
        self._console.print(f"{point}: {verdict(found)}", highlight=False, markup=False, soft_wrap=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def verdict(point: dict[str, Any]) -> str:
    """What came of a point, in a line."""
    shipped, best = point["shipped"], point["best"]
    left_out = f"{point['measured']} measured, {point['wrong']} wrong, {point['broken']} did not run"
    if best is None:
        told = f"no configuration is right; the shipped one: {point['failure']}"
    elif shipped is None:
        told = f"{_microseconds(best)}; the shipped one is not right: {point['failure']}"
    elif best["seconds"] < shipped["seconds"]:
        times = shipped["seconds"] / best["seconds"]
        told = f"{_microseconds(shipped)} → {_microseconds(best)}, {times:.2f} times as fast"
    else:
        told = f"{_microseconds(shipped)}, the shipped one stays"
    return f"{told} ({left_out}{'' if point['finished'] else ', not finished'})"


def table(rows: dict[str, list[dict[str, Any]]], paths: dict[str, list[dict[str, Any]]]) -> Table:
    """A line for each row: the kernel or the op, when it applies, what it gives."""
    shown = Table("kernel", "up to", "for", "configuration", box=None, padding=(0, 2, 0, 0), header_style="bold")
    for kernel, several in (*rows.items(), *paths.items()):
        for row in several:
            sizes = " ".join(f"{name} {row[name]}" for name in ("tokens", "N", "K", "rank") if name in row)
            which = " ".join("/".join(row[name]) for name in ("dtypes", "weights", "architectures") if name in row)
            shown.add_row(kernel, sizes, which, "as shipped" if row.get("shipped") else _configuration(row))
    return shown


def _configuration(row: dict[str, Any]) -> str:
    if "path" in row:
        return " by ".join(row[name] for name in ("path", "product") if name in row)
    blocks = " ".join(f"{name} {size}" for name, size in row["blocks"].items())
    return f"{blocks}, {row.get('num_warps', 4)} warps, {row.get('num_stages', 1)} stages"


def _microseconds(timed: dict[str, Any]) -> str:
    return f"{timed['seconds'] * 1e6:.1f} µs"
