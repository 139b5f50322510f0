"""`lorafam merge`: a model folder and an adapter folder, a folder of the merged model."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..finetune.errors import one_line
from .errors import INTERRUPTED, fail

if TYPE_CHECKING:
    from ..model import MergedFiles

COMMAND = "lorafam merge"


def merge(
    output: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="Where the merged model goes; new or empty.")
    ],
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FOLDER", help="The model, in safetensors files, not quantised."),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option("--adapter", metavar="FOLDER", help="The adapter, in PEFT's format: LoRA, DoRA, AdaLoRA."),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="NAME", help=r"same, bf16, fp16, fp32: how weights are stored \[same]."),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option("--max-shard-size", metavar="SIZE", help=r"The most bytes a file may have \[5GB].")
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold",
            metavar="SHARE",
            help=r"Share of the update that rounding may lose before a layer is better unmerged \[0.1].",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the merge that was interrupted here.")] = False,
) -> None:
    """Merge an adapter into a model's files, and say what that costs.

    Works a file at a time; transformers loads the output as it is. merge-report.json has every layer's figures.
    An interrupted merge goes on with: lorafam merge --resume --output FOLDER
    """
    from rich.console import Console

    from ..model import merge_files
    from .merge_report import ConsoleProgress

    try:
        result = merge_files(
            model,
            adapter,
            output,
            dtype=dtype,
            max_shard_size=max_shard_size,
            threshold=threshold,
            resume=resume,
            progress=ConsoleProgress(Console(stderr=True)),
        )
    except (FileNotFoundError, ValueError) as error:
        fail(one_line(error), command=COMMAND)
    except OSError as error:
        fail(one_line(error), command=COMMAND, code=1)
    except KeyboardInterrupt:
        again = f"{COMMAND} --resume --output {shlex.quote(str(output))}"
        fail(f"interrupted; go on with: {again}", command=COMMAND, code=INTERRUPTED)
    show(result)


def show(result: MergedFiles) -> None:
    """The report as a table, and where the model is."""
    from rich.console import Console

    from ..finetune.progress import human_bytes
    from ..model.merge_files import REPORT
    from .merge_report import table

    console = Console(highlight=False)
    console.print(table(result.report))
    console.print(result.report.summary(), markup=False, soft_wrap=True)
    files = f"{len(result.files)} file{'s' if len(result.files) > 1 else ''}"
    told = f"{result.output}: {files}, {human_bytes(result.nbytes)}; every layer's figures in {REPORT}"
    console.print(told, markup=False, soft_wrap=True)
