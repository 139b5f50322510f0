"""A flag for every field of `FinetuneConfig`, made from the fields: no setting has two descriptions."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..finetune.settings import FinetuneConfig
from .settings import flag, kind_of

CONFIG_HELP = "YAML file with settings; its keys are the flags' names."


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Calls `command(config, **settings)` with `--config` and all settings as flags, None where not given."""
    parameters = [_parameter("config", Path, typer.Option("--config", help=CONFIG_HELP, rich_help_panel="Data"))]
    negations = {}
    for field in dataclasses.fields(FinetuneConfig):
        kind, name = kind_of(field.name), flag(field.name)
        option = typer.Option(
            f"{name}/--no-{name[2:]}" if field.default is True else name,
            metavar=_METAVARS.get(kind),
            help=_help(field),
            rich_help_panel=field.metadata["group"],
            show_default=False,
        )
        # numbers come as texts, so that a wrong one is told by the same words as in a file
        parameters.append(_parameter(field.name, bool if kind is bool else str, option))
        if field.default is False:
            # not shown: two long names a line leave no room for the help
            negations[f"no_{field.name}"] = field.name
            hidden = typer.Option(f"--no-{name[2:]}", hidden=True)
            parameters.append(_parameter(f"no_{field.name}", bool, hidden))

    @functools.wraps(command)
    def run(**given: Any) -> None:
        for negation, name in negations.items():
            if given.pop(negation):
                given[name] = False
        command(**given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


_METAVARS = {int: "INTEGER", float: "NUMBER"}


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: dataclasses.Field[Any]) -> str:
    """The field's help and its default in brackets, which rich must not take for markup."""
    text: str = field.metadata["help"]
    if field.default is not dataclasses.MISSING and not text.endswith("]"):
        text += f" [{_shown(field.default)}]"
    return text.replace("[", r"\[")


def _shown(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
