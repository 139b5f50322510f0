"""(op, architecture, tokens) → how an op over a 4-bit weight runs, from `tuned/paths.json`.

    fused     codes are decoded inside the product
    staged    `nf4_dequantize` into a scratch, then a dense product: by cuBLAS, or by `dense_linear`

Rows by machine and op, first match first: {"tokens": at most, "architectures": [...], "path": ..., "product": "cublas"
or "triton"}. Each tile of tokens decodes anew on the fused path, so beyond some tokens decoding once wins.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

from .launch_table import machine_of

FUSED, STAGED = "fused", "staged"
CUBLAS, TRITON = "cublas", "triton"


class Route(NamedTuple):
    """`path` is FUSED or STAGED, `product` CUBLAS or TRITON where it is staged."""

    path: str
    product: str | None = None


@functools.cache
def _rows() -> dict[str, dict[str, list[dict[str, Any]]]]:
    return json.loads((Path(__file__).parent / "tuned" / "paths.json").read_text(encoding="utf-8"))


@functools.cache
def path_of(op: str, architecture: str, tokens: int) -> Route:
    """The first row that fits; FUSED for ops that have none."""
    for row in _rows()[machine_of(architecture)].get(op, []):
        if tokens <= row.get("tokens", tokens) and architecture in row.get("architectures", [architecture]):
            return Route(row["path"], row.get("product"))
    return Route(FUSED)
