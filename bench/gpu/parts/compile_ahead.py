"""What the checks launch, compiled for this GPU side by side into Triton's cache, without launching it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from ..cases import Case, Context
from ..device import device


def cases(context: Context) -> Iterator[Case]:
    # cut off by the end of the time it goes on with what the cache has
    yield Case("kernels", compiled, expects=60, limit=900, resumes=True)


def compiled() -> dict[str, Any]:
    """Counts, seconds, and by kernel what couldn't be compiled. Raises RuntimeError where nothing could."""
    from lorafam.backends.triton_gpu.compile_ahead import run_apart

    start, workers = time.perf_counter(), os.cpu_count() or 1
    card = device().card()
    done = run_apart(device().architecture, card["name"], card["multiprocessors"], workers)
    if len(done.errors) == done.kernels:
        raise RuntimeError(f"nothing compiles: {next(iter(done.errors.values()), 'there is no kernel')}")
    return {**done._asdict(), "workers": workers, "wall": time.perf_counter() - start}
