"""Runs nogil kernels on torch's own OpenMP threads, or on a few of ours: no parallel region of Numba's, so no threading
layer to choose.

After a parallel product torch's threads wait spinning, for milliseconds, for the next one. A thread of another pool
would fight them for the processor: a decode of 0.4 ms took 4 on two cores. So parts are handed to them through the
OpenMP runtime that torch has loaded (GNU's `GOMP_parallel`, which LLVM's and Intel's offer too). A pool of our own is
there for what has no such runtime, and for children of a fork, where OpenMP's threads are gone.

The number of threads is torch's (`torch.set_num_threads`). Safe from several Python threads at once and in dataloader
workers.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import torch

_RUNTIMES = ("libgomp", "libiomp", "libomp")
_MAPS = Path("/proc/self/maps")
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

_lock = threading.Lock()
_pools: dict[tuple[int, int], ThreadPoolExecutor] = {}
_forked = False


def parallel_ranges(function: Callable[[int, int], object], count: int, grain: int) -> None:
    """Calls `function(start, stop)` on parts that cover range(count), each at least `grain` long but the last.

    The calling thread takes part. An exception in any part is raised here, after all have ended.
    """
    parts = min(torch.get_num_threads(), max(1, count // max(1, grain)))
    if parts <= 1:
        function(0, count)
        return
    bounds = [count * part // parts for part in range(parts + 1)]
    ranges = list(itertools.pairwise(bounds))
    runtime = usable_openmp()
    if runtime is None:
        run_pool([functools.partial(function, *part) for part in ranges])
    else:
        _by_openmp(runtime, function, ranges)


def _by_openmp(
    runtime: Callable[..., object], function: Callable[[int, int], object], ranges: list[tuple[int, int]]
) -> None:
    left = iter(ranges)
    errors: list[BaseException] = []

    def body(_: int | None) -> None:
        # taking the next part is atomic under the interpreter's lock; a team may be smaller than asked for
        for start, stop in left:
            try:
                function(start, stop)
            except BaseException as error:
                errors.append(error)

    entry = _Body(body)
    runtime(ctypes.cast(entry, ctypes.c_void_p), None, len(ranges), 0)
    if errors:
        raise errors[0]


def usable_openmp() -> Callable[..., object] | None:
    """`openmp()`, or None in a child of a fork."""
    return None if _forked else openmp()


@functools.cache
def openmp() -> Callable[..., object] | None:
    """`GOMP_parallel(body, data, threads, flags)` of the OpenMP runtime that torch has loaded, or None."""
    library = _library()
    if library is None:
        return None
    parallel = library.GOMP_parallel
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    parallel.restype = None
    return parallel


@functools.cache
def barrier_address() -> int:
    """The address of that runtime's `GOMP_barrier()`, to be called inside of a parallel region; 0 without one."""
    barrier = getattr(_library(), "GOMP_barrier", None)
    return 0 if barrier is None else ctypes.cast(barrier, ctypes.c_void_p).value or 0


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The OpenMP runtime that torch has loaded."""
    if not _MAPS.is_file():
        return None
    home = Path(torch.__file__).parent
    loaded = {Path(line.split(maxsplit=5)[5].strip()) for line in _MAPS.read_text().splitlines() if ".so" in line}
    runtimes = sorted(path for path in loaded if path.name.startswith(_RUNTIMES))
    # torch's wheel carries its own, beside which another library may have loaded a second one
    own = [path for path in runtimes if home in path.parents or home.with_name("torch.libs") in path.parents]
    for path in own or (runtimes if len(runtimes) == 1 else []):
        library = ctypes.CDLL(str(path))
        if hasattr(library, "GOMP_parallel"):
            return library
    return None


def run_pool(tasks: Sequence[Callable[[], object]]) -> None:
    """Runs every task, the first on this thread and the others on our own; one thread's error is raised after all have
    ended.
    """
    first, *others = tasks
    futures = [_pool(torch.get_num_threads()).submit(task) for task in others]
    try:
        first()
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
    """The threads of the parent don't exist here, and its lock may have been held."""
    global _lock, _forked
    _lock = threading.Lock()
    _pools.clear()
    _forked = True


os.register_at_fork(after_in_child=_after_fork)
