"""A run on the console: a bar with loss, tokens a second and memory in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .run_log import Record

_LINES = 20


class ConsoleReporter:
    """A `Reporter` that writes to a rich console: about 20 lines a run where that is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._total = self._every = 1
        self._started, self._done_before = 0.0, 0

    def note(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False)

    def begin(self, done: int, total: int) -> None:
        self._total, self._every = total, -(-total // _LINES)
        self._started, self._done_before = time.monotonic(), done
        if self._console.is_terminal:
            self._bar = Progress(
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(compact=True),
                console=self._console,
                expand=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done, figures="")

    def step(self, record: Record) -> None:
        step, held_out = record["step"], ""
        if "held_out_loss" in record:
            held_out = f"held-out loss {record['held_out_loss']:.4f} ± {record['held_out_standard_error']:.4f}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, figures=_figures(record))
            if held_out:
                self._console.print(f"step {step:>{len(str(self._total))}}  {held_out}", highlight=False)
        elif held_out or step % self._every == 0 or step == self._total:
            parts = [f"step {step}/{self._total}", _figures(record), held_out, f"{self._left(step)} left"]
            self._console.print("  ".join(part for part in parts if part), highlight=False, soft_wrap=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, step: int) -> str:
        seconds = (time.monotonic() - self._started) / max(1, step - self._done_before) * (self._total - step)
        minutes, seconds = divmod(round(seconds), 60)
        return f"{minutes}:{seconds:02}"


def _figures(record: Record) -> str:
    return (
        f"loss {record['loss']:.3f}  {record['tokens_per_second']:.0f} tok/s  {human_bytes(record['resident_memory'])}"
    )


def human_bytes(count: float) -> str:
    """1,500,000,000 → "1.50 GB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.2f} {unit}" if unit == "GB" else f"{count / size:.0f} {unit}"
    return f"{count:.0f} B"
