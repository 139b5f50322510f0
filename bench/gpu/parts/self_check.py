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
    """How many launches found their kernel compiled. Raises RuntimeError where a path is switched off."""
    from lorafam.backends import eager, self_check

    gpu = device()
    with counted() as counts:
        if gpu.where.type == "cuda":
            import torch

            verdict = self_check.verdict(torch.device("cuda", torch.cuda.current_device()))
            if verdict.unchecked is not None:
                raise RuntimeError(verdict.unchecked)
            found = verdict.failures
        else:
            found = self_check.run_checks(gpu.ops, eager, gpu.where)
    if found:
        raise RuntimeError("switched off: " + "; ".join(f"{path} ({why})" for path, why in found.items()))
    return dict(counts)
