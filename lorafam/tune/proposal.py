"""From tables that `lorafam tune` left to rows for the shipped ones, `kernels/tuned/`: a person puts them there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..kernels.launch_rows import Row, check_rows
from ..kernels.launch_table import machine_of, rows
from ..kernels.paths import check_paths
from .table import PATHS, ROWS, configuration, rows_of

Table = dict[str, list[Row]]


def tables(folder: Path) -> list[Path]:
    """Every table in a folder that `make gpu` left, or in a cache folder; the file itself where one is named."""
    return [folder] if folder.is_file() else sorted(folder.rglob("tuned-*.json"))


def proposal(path: Path) -> dict[str, Table]:
    """{"rows": by kernel, "paths": by op}, each row for the table's architecture alone, and with the shipped choice
    written out where that won. Raises ValueError for a file that isn't such a table.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        architecture, points = found["architecture"], found["points"]
        tables = {
            table: {name: list(_whole(name, rows, points)) for name, rows in rows_of(points, table).items()}
            for table in (ROWS, PATHS)
        }
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: expected a table of lorafam tune: {type(error).__name__}: {error}") from None
    check_rows(tables[ROWS], rows(machine_of(architecture)))
    check_paths(tables[PATHS], architecture)
    for table in tables.values():
        for entries in table.values():
            for row in entries:
                row["architectures"] = [architecture]
    return tables


def _whole(name: str, found: list[Row], points: list[dict[str, Any]]) -> Iterator[Row]:
    """Rows with the shipped choice in the place of "shipped"; none where that isn't right either."""
    for row in found:
        if not row.get("shipped"):
            yield row
            continue
        conditions = {key: value for key, value in row.items() if key != "shipped"}
        (record,) = (one for one in points if one.get("kernel") == name and one["conditions"] == conditions)
        if record["shipped"] is not None:
            yield {**conditions, **configuration(record["shipped"])}
