"""The entry point `lorafam`. A subcommand's libraries are imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from .doctor import doctor
from .errors import OneLineErrors
from .finetune import finetune
from .merge import merge
from .tune import tune

app = typer.Typer(
    cls=OneLineErrors,
    help="Fast and checked LoRA, QLoRA, AdaLoRA and DoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(finetune)
app.command()(merge)
app.command()(doctor)
app.command()(tune)


def _show_version(wanted: bool) -> None:
    if wanted:
        from lorafam import __version__

        typer.echo(f"lorafam {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Fast and checked LoRA, QLoRA, AdaLoRA and DoRA."""
