"""A compiled kernel run by several threads at once, on torch's own OpenMP threads, without the interpreter.

A kernel is `function(data, part, scratch)` over addresses. Threads take the next part one after the other, so that one
that is held up doesn't hold up the rest; what a part computes doesn't depend on who computes it.

    data    int64: next part, number of parts, threads so far, scratch, its bytes a thread, then the kernel's own
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Sequence

import torch
from numba import njit

from .threads import run_pool, usable_openmp
from .vector import fetch_add, load_integer

# int64 before a kernel's own arguments
HEADER = 5
_local = threading.local()
_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@njit(inline="always")
def argument(data: int, index: int) -> int:
    """The kernel's argument of that index."""
    return load_integer(data + 8 * (HEADER + index))


@njit(inline="always")
def my_scratch(data: int) -> int:
    """The address of this thread's own scratch."""
    return load_integer(data + 24) + fetch_add(data + 16) * load_integer(data + 32)


@njit(inline="always")
def next_part(data: int) -> int:
    """The part to do next, or -1."""
    part = fetch_add(data)
    return part if part < load_integer(data + 8) else -1


def run(entry: int, arguments: Sequence[int], parts: int, scratch_bytes: int = 0) -> None:
    """Runs the compiled entry at an address over all parts. `arguments` are addresses and numbers."""
    if parts <= 0:
        return
    threads = min(torch.get_num_threads(), parts)
    room = scratch("parts", threads * scratch_bytes) if scratch_bytes else 0
    values = (0, parts, 0, room, scratch_bytes, *arguments)
    data = (ctypes.c_int64 * len(values))(*values)
    address = ctypes.addressof(data)
    runtime = usable_openmp() if threads > 1 else None
    if runtime is not None:
        runtime(entry, address, threads, 0)
    else:
        run_pool([functools.partial(_Entry(entry), address)] * threads)


def scratch(name: str, size: int) -> int:
    """The address of at least `size` bytes, 64-byte aligned: this Python thread's own, kept between calls."""
    kept = _local.__dict__.setdefault("kept", {})
    buffer = kept.get(name)
    if buffer is None or buffer.numel() < size + 64:
        buffer = kept[name] = torch.empty(size + 64, dtype=torch.uint8)
    return -(-buffer.data_ptr() // 64) * 64
