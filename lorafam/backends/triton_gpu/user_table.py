"""What `lorafam tune` measured on this machine: its file, and its rows and paths put before the shipped ones.

A file is kept by GPU model and by versions of lorafam and triton, and read when a kernel is first launched on a GPU.
One that can't be used is told, and the shipped table stays.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from ...kernels.launch_rows import check_rows
from ...kernels.launch_table import machine_of, prefer, rows
from ...kernels.paths import check_paths, prefer_paths
from ..user_files import user_file

# architecture → the GPU model whose rows are in use
_in_use: dict[str, str] = {}


def table_file(model: str) -> Path:
    """Where the table of a GPU model is kept."""
    return user_file("tuned", model, ("lorafam", "triton"))


def read(path: Path, architecture: str) -> dict[str, Any] | None:
    """The file's content, None where there is no file. Raises ValueError, with the reason, for one that can't be used:
    damaged, of another architecture, or with a malformed row.
    """
    if not path.is_file():
        return None
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    whole = isinstance(table, dict) and {"points", "rows", "paths"} <= table.keys()
    if not whole or not isinstance(table["points"], list):
        raise ValueError(f"{path} is damaged: expected an object with points, rows and paths")
    if table.get("architecture") != architecture:
        raise ValueError(f"{path}: expected architecture {architecture}, got {table.get('architecture')!r}")
    try:
        check_rows(table["rows"], rows(machine_of(architecture)))
        check_paths(table["paths"], architecture)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return table


def use(model: str, architecture: str) -> None:
    """Puts the rows kept for a GPU model before the shipped ones; warns where they can't be used."""
    try:
        table = read(table_file(model), architecture)
    except ValueError as error:
        warnings.warn(f"lorafam uses its shipped launch table, without what was tuned: {error}", stacklevel=2)
        return
    if table is None:
        return
    holder = _in_use.setdefault(architecture, model)
    if holder != model:
        message = f"the launch table tuned for {model} isn't used: {holder}'s is, in this process, for {architecture}"
        warnings.warn(message, stacklevel=2)
        return
    prefer(architecture, table["rows"])
    prefer_paths(architecture, table["paths"])
