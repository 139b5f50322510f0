"""A row of the launch table: when it applies, and the configuration it gives; rows from elsewhere are checked here.

A shipped row may have {"triton": "<3.8"}, or "3.7": it is one of the table's under these Tritons only.
A row put before the shipped ones may have {"shipped": true} for a configuration: where it applies, the shipped rows
decide, and none after it.
"""

from __future__ import annotations

from typing import Any

import triton

Row = dict[str, Any]

# conditions: "at most", and "one of these" by the name of what is compared
SIZES = ("tokens", "N", "K", "rank")
LISTS = {"dtype": "dtypes", "weight": "weights", "architecture": "architectures"}
_KEYS = (*SIZES, *LISTS.values(), "blocks", "num_warps", "num_stages", "shipped")


# major and minor version of the Triton that runs
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))


def of_triton(rows: list[Row], version: tuple[int, ...]) -> list[Row]:
    """The rows that hold under a Triton, without the condition. Raises ValueError for one that isn't "major.minor" or
    "<major.minor".
    """
    return [
        {key: value for key, value in row.items() if key != "triton"}
        for row in rows
        if "triton" not in row or _holds(row["triton"], version)
    ]


def _holds(condition: Any, version: tuple[int, ...]) -> bool:
    numbers = condition.removeprefix("<").split(".") if isinstance(condition, str) else []
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)):
        raise ValueError(f'triton: expected a version such as 3.8, or "<" and one, got {condition!r}')
    bound = tuple(map(int, numbers))
    return version < bound if condition.startswith("<") else version == bound


def check_rows(rows: Any, shipped: dict[str, list[Row]]) -> None:
    """Raises ValueError, naming the row, unless `rows` are rows by kernel, with the block names of the shipped ones."""
    if not isinstance(rows, dict):
        raise ValueError(f"rows: expected lists of rows by kernel, got {rows!r}")
    for kernel, entries in rows.items():
        if kernel not in shipped:
            raise ValueError(f"expected a kernel ({', '.join(shipped)}), got {kernel!r}")
        if not isinstance(entries, list):
            raise ValueError(f"{kernel}: expected a list of rows, got {entries!r}")
        names = shipped[kernel][0]["blocks"].keys()
        for number, row in enumerate(entries, 1):
            _check_row(f"{kernel}, row {number}", row, names)


def check_conditions(where: str, row: Any, keys: tuple[str, ...]) -> None:
    """Raises ValueError unless `row` is an object of these keys, whose conditions are well-formed."""
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {row!r}")
    if unknown := sorted(row.keys() - keys):
        raise ValueError(f"{where}: expected keys of {', '.join(keys)}, got {', '.join(unknown)}")
    for key in SIZES:
        if key in row and not _is_count(row[key]):
            raise ValueError(f"{where}: {key}: expected a whole number of at least 1, got {row[key]!r}")
    for key in LISTS.values():
        if key in row and not (isinstance(row[key], list) and all(isinstance(name, str) for name in row[key])):
            raise ValueError(f"{where}: {key}: expected a list of names, got {row[key]!r}")


def _check_row(where: str, row: Any, names: Any) -> None:
    check_conditions(where, row, _KEYS)
    if row.get("shipped"):
        if row["shipped"] is not True or not row.keys().isdisjoint(("blocks", "num_warps", "num_stages")):
            raise ValueError(f"{where}: expected either shipped: true or a configuration, got {row!r}")
        return
    blocks = row.get("blocks")
    if not isinstance(blocks, dict) or blocks.keys() != names:
        raise ValueError(f"{where}: blocks: expected sizes of {', '.join(names)}, got {blocks!r}")
    for key, size in {**blocks, "num_warps": row.get("num_warps", 4)}.items():
        if not (_is_count(size) and size & (size - 1) == 0):
            raise ValueError(f"{where}: {key}: expected a power of two, got {size!r}")
    if not _is_count(row.get("num_stages", 1)):
        raise ValueError(f"{where}: num_stages: expected a whole number of at least 1, got {row['num_stages']!r}")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
