"""Every kernel that the checks launch, compiled for this GPU side by side into Triton's cache, without launching one.

What is compiled is what a launch would compile (`ahead_of_time.compiled`), so that a launch finds it.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any

from ..cases import Case, Context
from ..device import device
from ..worker import die_with_parent, told

# neighbours launch the same kernels, so that a shuffled order compiles few twice
SEED = 0


def cases(context: Context) -> Iterator[Case]:
    # cut off by the end of the time it goes on with what the cache has
    yield Case("kernels", lambda: compiled(device().architecture), expects=60, limit=900)


def compiled(architecture: str, workers: int | None = None) -> dict[str, Any]:
    """Counts, seconds, and by case what couldn't be compiled. Raises RuntimeError where nothing could."""
    start = time.perf_counter()
    workers = workers or os.cpu_count() or 1
    order = list(range(number_of_cases()))
    random.Random(SEED).shuffle(order)
    errors: dict[str, str] = {}
    counts = {"found": 0, "compiled": 0}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=die_with_parent) as pool:
        futures = [pool.submit(compile_one, architecture, index) for index in order]
        for future in as_completed(futures):
            name, error, one = future.result()
            for key in counts:
                counts[key] += one[key]
            if error:
                errors[name] = error
    if len(errors) == len(order):
        raise RuntimeError(f"nothing compiles: {next(iter(errors.values()))}")
    return {"cases": len(order), "workers": workers, **counts, "errors": errors, "wall": time.perf_counter() - start}


def number_of_cases() -> int:
    return len(_all_cases())


def compile_one(architecture: str, index: int) -> tuple[str, str, dict[str, int]]:
    """Compiles what one call launches: its name, the error or "", and how many kernels were found or compiled."""
    from lorafam.backends import triton_gpu
    from lorafam.backends.triton_gpu.launch import compiled_only

    from ..compiled import counted

    op, what, arguments = _all_cases()[index]
    with counted() as counts, compiled_only(architecture):
        try:
            getattr(triton_gpu, op)(*arguments)
        except Exception as error:
            return f"{op}, {what}", told(error), counts
    return f"{op}, {what}", "", counts


_CASES: list[Any] = []


def _all_cases() -> list[Any]:
    """The self-check's calls, with tensors on the CPU; made once a process."""
    import torch

    from lorafam.backends import eager, self_check

    if not _CASES:
        torch.set_num_threads(1)
        _CASES.extend(self_check._cases(eager, torch.device("cpu")))
    return _CASES
