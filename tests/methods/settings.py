"""Settings for any method."""

from __future__ import annotations

from typing import Any

from lorafam.methods import METHODS


def settings_of(method: str, **wanted: Any) -> dict[str, Any]:
    """Those of `wanted` that the method has."""
    return {name: value for name, value in wanted.items() if name not in METHODS[method].lacks}
