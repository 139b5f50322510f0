"""How many kernels were found compiled, and how many were compiled, as Triton tells it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def counted() -> Iterator[dict[str, int]]:
    """{"found": in Triton's cache, "compiled": anew} of what is launched meanwhile in this process."""
    import triton

    counts = {"found": 0, "compiled": 0}

    def listener(*, cache_hit: bool, **_: Any) -> None:
        counts["found" if cache_hit else "compiled"] += 1

    before = triton.knobs.compilation.listener
    triton.knobs.compilation.listener = listener
    try:
        yield counts
    finally:
        triton.knobs.compilation.listener = before
