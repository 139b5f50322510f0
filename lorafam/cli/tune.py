"""`lorafam tune`: measures launch configurations on this machine's GPU, and shows the table in use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ..finetune.errors import one_line
from .errors import INTERRUPTED, fail

if TYPE_CHECKING:
    from pathlib import Path

    from ..tune.gpu import Gpu
    from ..tune.points import Point

COMMAND = "lorafam tune"


def tune(
    op: Annotated[
        list[str] | None, typer.Option("--op", metavar="NAME", help=r"An op; repeatable \[default: all].")
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="N,K",
            help=r"Out and in features; repeatable \[default: 4096,4096 11008,4096 4096,11008].",
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        typer.Option("--tokens", metavar="INTEGER", help=r"Repeatable \[default: 1 4 16 64 128 512 2048]."),
    ] = None,
    rank: Annotated[int, typer.Option("--rank", metavar="INTEGER", help="Adapters' rank.")] = 16,
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAME", help="bfloat16, float16, float32.")] = "bfloat16",
    weight: Annotated[
        list[str] | None, typer.Option("--weight", metavar="NAME", help=r"nf4, dense; repeatable \[default: nf4].")
    ] = None,
    minutes: Annotated[float, typer.Option("--minutes", metavar="NUMBER", help="How long it may take.")] = 30,
    again: Annotated[bool, typer.Option("--again", help="Start over instead of going on.")] = False,
    only_show: Annotated[bool, typer.Option("--show", help="Show the table in use and measure nothing.")] = False,
    results: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="RESULTS", help="Print rows for the shipped tables from what was measured there."
        ),
    ] = None,
) -> None:
    """Find the fastest launch configurations on this machine's GPU and keep them for it.

    After Ctrl-C, or when the time is up, the same command goes on where it stopped. With --from nothing is measured,
    and no GPU is needed.
    """
    if results is not None:
        propose(results)
        return
    try:
        points = asked(op, shape, tokens, rank, dtype, weight)
        if not minutes > 0:
            raise ValueError(f"--minutes: expected more than 0, got {minutes:g}")
        gpu, path = found()
    except (ImportError, RuntimeError, ValueError) as error:
        fail(one_line(error), command=COMMAND)
    if only_show:
        show(gpu, path)
    else:
        run(points, gpu, path, minutes, again)


def propose(results: str) -> None:
    """Prints rows for kernels/tuned/, a table after the other, from a file, a cache folder or what `make gpu` left."""
    import json
    from pathlib import Path

    from ..tune.proposal import proposal, tables

    paths = tables(Path(results))
    if not paths:
        fail(f"--from: expected a table of lorafam tune (tuned-*.json), found none in {results}", command=COMMAND)
    try:
        for path in paths:
            typer.echo(f"from {path}", err=True)
            typer.echo(json.dumps(proposal(path)))
    except ValueError as error:
        fail(one_line(error), command=COMMAND)


def asked(
    op: list[str] | None,
    shape: list[str] | None,
    tokens: list[int] | None,
    rank: int,
    dtype: str,
    weight: list[str] | None,
) -> list[Point]:
    """The points of these flags. Raises ValueError, naming the flag, for one that is wrong."""
    from ..tune.points import DTYPES, OPS, SHAPES, STORAGES, TOKENS, points

    for flag, names, known in (("--op", op, OPS), ("--dtype", [dtype], DTYPES), ("--weight", weight, STORAGES)):
        for name in names or []:
            if name not in known:
                raise ValueError(f"{flag}: expected one of {', '.join(known)}, got {name!r}")
    for flag, counts in (("--tokens", tokens or []), ("--rank", [rank])):
        for count in counts:
            if count < 1:
                raise ValueError(f"{flag}: expected at least 1, got {count}")
    shapes = [_shape(text) for text in shape or []]
    found = points(op or OPS, shapes or SHAPES, tokens or TOKENS, rank, dtype, weight or ["nf4"])
    if not found:
        wanted = "--weight nf4, and a staged path 64 tokens, 16 bits and whole blocks"
        raise ValueError(f"--op: nothing to measure; {', '.join(op or OPS)} needs {wanted}")
    return found


def _shape(text: str) -> tuple[int, int]:
    sides = text.split(",")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"--shape: expected N,K, two numbers of at least 1, got {text!r}")
    return int(sides[0]), int(sides[1])


def found() -> tuple[Gpu, Path]:
    """The GPU and the file of its table. Raises RuntimeError where the kernels can't run."""
    from ..backends import selection

    choice = selection.choose("cuda")
    if choice.backend != "triton":
        raise RuntimeError(f"expected a GPU that the kernels run on: {choice.reason}")
    from ..backends.triton_gpu.user_table import table_file
    from ..tune.this_gpu import this_gpu

    gpu = this_gpu()
    return gpu, table_file(gpu.model)


def run(points: list[Point], gpu: Gpu, path: Path, minutes: float, again: bool) -> None:
    """Measures, and tells what came of it and how to go on."""
    from rich.console import Console

    from ..tune.session import tune as measure
    from .tune_report import TuneConsole

    console = Console(stderr=True)
    try:
        summary = measure(points, gpu, path, TuneConsole(console), seconds=60 * minutes, again=again)
    except KeyboardInterrupt:
        fail(f"interrupted; the same command goes on; finished points are in {path}", command=COMMAND, code=INTERRUPTED)
    except (OSError, RuntimeError) as error:
        fail(one_line(error), command=COMMAND, code=1)
    line = f"{summary.finished} of {summary.points} points finished, {summary.won} faster than shipped: {path}"
    typer.echo(line)
    if summary.finished < summary.points:
        typer.echo("the same command goes on where this one stopped")


def show(gpu: Gpu, path: Path) -> None:
    """Where the table is, and the rows that go before the shipped ones."""
    from ..kernels.launch_table import preferred
    from ..kernels.paths import preferred_paths
    from .tune_report import table

    typer.echo(path if path.is_file() else f"{path}: not there, the shipped table is in use")
    rows, paths = preferred(gpu.architecture), preferred_paths(gpu.architecture)
    if rows or paths:
        from rich.console import Console

        Console(highlight=False).print(table(rows, paths))
