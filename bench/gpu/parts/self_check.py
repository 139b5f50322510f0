"""The check that lorafam makes by itself on a GPU it hasn't seen, as a user meets it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..cases import Case, Context
from ..compiled import counted
from ..device import device


def cases(context: Context) -> Iterator[Case]:
    yield Case("failures", failures, expects=60, limit=400)


def failures() -> dict[str, Any]:
    """How many launches found their kernel compiled. Raises RuntimeError where an op is switched off."""
    from lorafam.backends import eager, self_check

    gpu = device()
    with counted() as counts:
        if gpu.where.type == "cuda":
            import torch

            found = self_check.failures(torch.device("cuda", torch.cuda.current_device()))
        else:
            found = self_check.run_checks(gpu.ops, eager, gpu.where)
    if found:
        raise RuntimeError("switched off: " + "; ".join(f"{op} ({why})" for op, why in found.items()))
    return dict(counts)
