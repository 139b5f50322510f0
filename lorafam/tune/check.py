"""Whether an op is right as it now runs, by the comparison of the self-check."""

from __future__ import annotations

from typing import Any

from ..backends.comparison import Expected, compare, results_of
from ..backends.told import told
from .gpu import Gpu

RIGHT, WRONG, BROKEN = "right", "wrong", "broken"


class GpuLostError(RuntimeError):
    """The GPU no longer answers after something was tried: `tried`, as plain data."""

    def __init__(self, tried: dict[str, Any], reason: str) -> None:
        super().__init__(f"the GPU no longer answers after {tried}: {reason}")
        self.tried = tried


def failure(gpu: Gpu, op: str, arguments: tuple[Any, ...], wanted: Expected, tried: dict[str, Any]) -> tuple[str, str]:
    """RIGHT, WRONG, or BROKEN where it doesn't compile or run; and why. Raises GpuLostError, naming `tried`."""
    try:
        got = results_of(op, getattr(gpu.ops, op), arguments)
        # a launch's own failure shows here, not in the comparison
        gpu.probe()
    except Exception as error:  # whatever a compiler or a launch raises
        try:
            gpu.probe()
        except Exception:
            raise GpuLostError(tried, told(error)) from None
        return BROKEN, told(error)
    try:
        compare(op, got, wanted)
    except AssertionError as error:
        return WRONG, told(error)
    return RIGHT, ""
