"""Runs nogil kernels on a few threads of our own: no parallel region of Numba's, so no threading layer to choose or to
fight with torch's.

The number of threads is torch's (`torch.set_num_threads`). Safe from several Python threads at once, after a fork and
in dataloader workers: a child process makes a pool of its own.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import torch

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}


def parallel_ranges(function: Callable[[int, int], object], count: int, grain: int) -> None:
    """Calls `function(start, stop)` on parts that cover range(count), each at least `grain` long but the last.

    The calling thread takes one part itself. An exception in any part is raised here, after all have ended.
    """
    parts = min(torch.get_num_threads(), max(1, count // max(1, grain)))
    if parts <= 1:
        function(0, count)
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    pool = _pool(torch.get_num_threads() - 1)
    futures = [pool.submit(function, start, stop) for start, stop in itertools.pairwise(bounds[1:])]
    try:
        function(bounds[0], bounds[1])
    finally:
        wait(futures)
    for future in futures:
        future.result()


def _pool(size: int) -> ThreadPoolExecutor:
    key = os.getpid(), size
    pool = _pools.get(key)
    if pool is None:
        with _lock:
            pool = _pools.setdefault(key, ThreadPoolExecutor(size, thread_name_prefix="lorafam"))
    return pool


def _after_fork() -> None:
    """The threads of the parent's pools don't exist here, and its lock may have been held."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


os.register_at_fork(after_in_child=_after_fork)
