"""A flag for every field of `FinetuneConfig`, made from the fields: no setting has two descriptions."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from ..train.settings import FinetuneConfig
from .settings import TYPES, flag

CONFIG_HELP = "YAML file with settings; its keys are the flags' names."


def with_setting_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command(config, **settings)` the signature typer reads: `--config` and all settings, None where not
    given.
    """
    parameters = [_parameter("config", Path, typer.Option("--config", help=CONFIG_HELP, rich_help_panel="Data"))]
    for field in dataclasses.fields(FinetuneConfig):
        kind, names = _flag_type(field.name), flag(field.name)
        if kind is bool and field.name != "resume":
            names += f"/--no-{names[2:]}"
        option = typer.Option(names, help=_help(field), rich_help_panel=field.metadata["group"], show_default=False)
        parameters.append(_parameter(field.name, kind, option))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag_type(name: str) -> Any:
    kinds = typing.get_args(TYPES[name]) or (TYPES[name],)
    return kinds[0] if kinds[0] in (int, float, bool) else str


def _help(field: dataclasses.Field[Any]) -> str:
    text = field.metadata["help"]
    if field.default is dataclasses.MISSING or text.endswith("]") or field.name == "resume":
        return text.replace("[", r"\[")
    default = (
        {None: "none", True: "yes", False: "no"}.get(field.default, field.default)
        if not isinstance(field.default, (int, float)) or isinstance(field.default, bool)
        else field.default
    )
    return rf"{text} \[{default}]"
