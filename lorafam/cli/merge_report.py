"""`lorafam merge` on the console: a bar or a line a file, and the table of what merging cost."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..finetune.progress import human_bytes
from ..model import ModelMergeReport


class ConsoleProgress:
    """A `Progress` that writes to a rich console; the bar is shown in a terminal alone."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def begin(self, done: int, total: int) -> None:
        if self._console.is_terminal:
            columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn(compact=True))
            now = TextColumn("{task.description}", markup=False)
            self._bar = Progress(*columns, now, console=self._console, transient=True)
            self._bar.start()
            self._task = self._bar.add_task("", total=total, completed=done)
        if done:
            self._say(f"going on: {human_bytes(done)} of {human_bytes(total)} are there")

    def tensor(self, name: str, nbytes: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=nbytes, description=name)

    def shard(self, name: str, number: int, of: int, nbytes: int) -> None:
        self._say(f"{name}  {human_bytes(nbytes)}")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False, markup=False, soft_wrap=True)


def table(report: ModelMergeReport) -> Table:
    """The lines of the report; those that advise against merging stand out."""
    head, *lines = report.table()
    shown = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    # a terminal of 80 columns has room for a path like model.layers.*.self_attn.q_proj
    shown.add_column(
        head[0], overflow="fold", vertical="bottom", min_width=min(36, max(len(line[0]) for line in lines))
    )
    shown.add_column(head[1], no_wrap=True)
    for name in head[2:-1]:
        words = name.replace(" / ", " /\n").replace(" kept", "\nkept").replace("s output", "s\noutput")
        shown.add_column(words, justify="right", no_wrap=True)
    shown.add_column(head[-1])
    for line in lines:
        shown.add_row(*line, style="yellow" if line[-1] else None)
    return shown
