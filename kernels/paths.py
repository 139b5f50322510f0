"""(op, architecture, sizes) → how an op runs, from `tuned/paths.json`.

    fused     codes are decoded inside the product
    staged    `nf4_dequantize` into a scratch, then a dense product: by cuBLAS, or by `dense_linear`; `row_norm`: W
              decoded in panels of rows, B̂A added to them, then their norms

Rows by machine and op, first match first: {"tokens", "N", "K", "rank": each at most, "architectures": [...],
"path": ..., "product": "cublas" or "triton"}; rows that a user measured go before them (`prefer_paths`, as in
`launch_table`). Each tile of tokens, or of ranks, decodes anew on the fused path, so beyond some decoding once wins.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from .launch_rows import Row, check_conditions
from .launch_table import machine_of

FUSED, STAGED = "fused", "staged"
CUBLAS, TRITON = "cublas", "triton"
_CONDITIONS = ("tokens", "N", "K", "rank", "architectures")
_GIVEN = ("path", "product", "shipped")
_ROUTES = ({"path": FUSED}, *({"path": STAGED, "product": by} for by in (CUBLAS, TRITON)), {"shipped": True})


class Route(NamedTuple):
    """`path` is FUSED or STAGED, `product` CUBLAS or TRITON where it is staged, else ""."""

    path: str
    product: str = ""


# architecture → rows put before the shipped ones
_preferred: dict[str, dict[str, list[Row]]] = {}


@functools.cache
def _rows() -> dict[str, dict[str, list[Row]]]:
    return json.loads((Path(__file__).parent / "tuned" / "paths.json").read_text(encoding="utf-8"))


def prefer_paths(architecture: str, preferred: dict[str, list[Row]]) -> None:
    """Puts rows, by op, before the shipped ones for `architecture`, in place of what was put there before.

    Raises ValueError for a row that is malformed; nothing has changed then.
    """
    check_paths(preferred, architecture)
    _preferred[architecture] = preferred
    path_of.cache_clear()


def preferred_paths(architecture: str) -> dict[str, list[Row]]:
    """The rows that go before the shipped ones for `architecture`."""
    return _preferred.get(architecture, {})


@functools.cache
def path_of(op: str, architecture: str, tokens: int, N: int = 0, K: int = 0, rank: int = 0) -> Route:
    """The first row that fits; FUSED for ops that have none. W is [N, K]; sizes of 0 aren't known."""
    sizes = {"tokens": tokens, "N": N, "K": K, "rank": rank}
    for several in (preferred_paths(architecture).get(op, []), _rows()[machine_of(architecture)].get(op, [])):
        for row in several:
            small = all(size <= row.get(name, size) for name, size in sizes.items())
            if small and architecture in row.get("architectures", [architecture]):
                if "shipped" in row:
                    break
                return Route(row["path"], row.get("product", ""))
    return Route(FUSED)


def check_paths(rows: Any, architecture: str) -> None:
    """Raises ValueError, naming the row, unless `rows` are rows by op."""
    ops = _rows()[machine_of(architecture)].keys()
    if not isinstance(rows, dict):
        raise ValueError(f"paths: expected lists of rows by op, got {rows!r}")
    for op, entries in rows.items():
        if op not in ops:
            raise ValueError(f"paths: expected an op ({', '.join(ops)}), got {op!r}")
        if not isinstance(entries, list):
            raise ValueError(f"paths of {op}: expected a list of rows, got {entries!r}")
        for number, row in enumerate(entries, 1):
            check_conditions(f"paths of {op}, row {number}", row, (*_CONDITIONS, *_GIVEN))
            if {name: row[name] for name in _GIVEN if name in row} not in _ROUTES:
                raise ValueError(f"paths of {op}, row {number}: expected one of {_ROUTES}, got {row!r}")
