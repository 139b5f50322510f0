"""A compiled kernel run by several threads at once, on torch's own OpenMP threads, without the interpreter.

A kernel is `function(data)` over addresses. Threads take the next part one after the other, so that one that is held
up doesn't hold up the rest; what a part computes doesn't depend on who computes it.

    data    int64: next part, number of parts, threads so far, scratch, its bytes a thread, then the kernel's own
"""

from __future__ import annotations

import array
import ctypes
import functools
import threading
from collections.abc import Callable, Sequence

import torch
from numba import njit

from .memory import fetch_add, load_integer
from .threads import run_pool, usable_openmp

# int64 before a kernel's own arguments
HEADER = 5
_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Local(threading.local):
    """A Python thread's own buffers."""

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}


_local = _Local()


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
    data = array.array("q", (0, parts, 0, room, scratch_bytes, *arguments))
    where = data.buffer_info()[0]
    if threads == 1:
        _function(entry)(where)
        return
    runtime = usable_openmp()
    if runtime is not None:
        runtime(entry, where, threads, 0)
    else:
        run_pool([functools.partial(_function(entry), where)] * threads)


@functools.cache
def _function(entry: int) -> Callable[[int], None]:
    """The compiled entry, which lets other Python threads run meanwhile."""
    return _Entry(entry)


def scratch(name: str, size: int) -> int:
    """The address of at least `size` bytes, 64-byte aligned: this Python thread's own, kept between calls."""
    return -(-kept(name, size + 64).data_ptr() // 64) * 64


def kept(name: str, size: int) -> torch.Tensor:
    """uint8 [at least size], this Python thread's own of that name, kept between calls."""
    buffer = _local.buffers.get(name)
    if buffer is None or buffer.numel() < size:
        buffer = _local.buffers[name] = torch.empty(size, dtype=torch.uint8)
    return buffer


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor lies; 0 for None. It must live as long as the address is used."""
    return 0 if tensor is None else tensor.data_ptr()
