"""Settings from a YAML file and flags: what a flag says wins over the file, the file over the default.

Keys are the names of `FinetuneConfig`'s fields, with - or _. An unknown key or a value of the wrong type is an
InputError that names it.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..finetune.errors import InputError
from ..finetune.settings import FinetuneConfig

TYPES: dict[str, Any] = typing.get_type_hints(FinetuneConfig)
_REQUIRED = [item.name for item in dataclasses.fields(FinetuneConfig) if item.default is dataclasses.MISSING]


def merge(flags: Mapping[str, Any], config: Path | None) -> FinetuneConfig:
    """The settings of a run. Flags that are None weren't given.

    With `resume`, the settings in the output folder come first, so that the folder alone says how to go on.
    """
    from ..finetune.run_folder import read_settings

    given = {name: convert(name, _read(name, value)) for name, value in flags.items() if value is not None}
    values = parse(read_settings(config)) | given if config is not None else given
    saved = Path(values.get("output", "")) / "run.yaml"
    if values.get("resume") and values.get("output") and saved.is_file():
        values = parse(read_settings(saved)) | {"output": values["output"]} | values
    for name in _REQUIRED:
        if name not in values:
            raise InputError(f"{name}: missing; give {flag(name)} or the key {name} in --config")
    return FinetuneConfig(**values)


def parse(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a YAML mapping in their fields' types."""
    result = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in TYPES:
            near = difflib.get_close_matches(name, TYPES, n=1)
            raise InputError(f"{key}: no such setting" + (f"; did you mean {near[0]}?" if near else ""))
        result[name] = convert(name, value)
    return result


def convert(name: str, value: Any) -> Any:
    """`value` in the type of the field `name`. Raises InputError naming the field when it isn't of that type."""
    kind = kind_of(name)
    if type(None) in _kinds(name) and (value is None or value == "none"):
        return None
    if typing.get_origin(kind) is tuple:
        return _names(name, value)
    if kind is float:
        return _number(name, value)
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise InputError(f"{name}: expected {_SAID[kind]}, got {value!r}")


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def kind_of(name: str) -> Any:
    """The type of a field's values, None left aside: str, int, float, bool, or a tuple of str."""
    return _kinds(name)[0]


def _kinds(name: str) -> list[Any]:
    """The types a field's annotation allows: one, and NoneType where it is optional."""
    union = isinstance(TYPES[name], types.UnionType)
    return [*typing.get_args(TYPES[name])] if union else [TYPES[name]]


def _read(name: str, value: Any) -> Any:
    """A flag's text as YAML would read it where the field has integers; other texts are `convert`'s."""
    if kind_of(name) is int and isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            return value
    return value


_SAID = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def _number(name: str, value: Any) -> float:
    # YAML 1.1 reads 2e-4 as a text
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise InputError(f"{name}: expected a number, got {value!r}") from None
    raise InputError(f"{name}: expected a number, got {value!r}")


def _names(name: str, value: Any) -> tuple[str, ...] | None:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, str) and part for part in value):
        raise InputError(f"{name}: expected names, got {value!r}")
    return None if list(value) == ["all-linear"] else tuple(value)
