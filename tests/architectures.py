"""The architectures that kernels are compiled and simulated for: all, or those that LORAFAM_ARCHITECTURES names."""

from __future__ import annotations

import os
from collections.abc import Sequence

NAMED = os.environ.get("LORAFAM_ARCHITECTURES", "").split(",")


def chosen(architectures: Sequence[str]) -> tuple[str, ...]:
    """Those of `architectures` that are named; all where none is named anywhere."""
    return tuple(name for name in architectures if NAMED == [""] or name in NAMED)
