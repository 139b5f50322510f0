"""A compiled kernel run by several threads at once, on torch's own OpenMP threads, without the interpreter.

A kernel is `function(data)` over addresses. Threads take the next part one after the other, so that one that is held
up doesn't hold up the rest; what a part computes doesn't depend on who computes it.

    data    int64: next part, number of parts, threads so far, scratch, its bytes a thread, then the kernel's own

Kernels that follow one another, `with region():`, run in one parallel region: its threads meet between two of them.
"""

from __future__ import annotations

import array
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from numba import njit

from .compiled import compiled
from .memory import call_at, fetch_add, load_integer
from .threads import barrier_address, run_pool, usable_openmp

# int64 before a kernel's own arguments
HEADER = 5
# shapes of calls that are kept
_CALLS = 1024
_Entry = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class _Queued(NamedTuple):
    """What `run` was asked for."""

    entry: int
    arguments: Sequence[int]
    parts: int
    scratch_bytes: int
    meets: bool


class _Local(threading.local):
    """A Python thread's own buffers."""

    def __init__(self) -> None:
        self.buffers: dict[str, torch.Tensor] = {}
        # of an open region: its kernels, and what they use that nobody else may hold
        self.kernels: list[_Queued] | None = None
        self.held: list[torch.Tensor] = []
        # calls that were made before, until a buffer grows
        self.calls: dict[Hashable, _Call] = {}
        self.growths = 0


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


def run(entry: int, arguments: Sequence[int], parts: int, scratch_bytes: int = 0, *, meets: bool = True) -> None:
    """Runs the compiled entry at an address over all parts, or adds it to the open region. `arguments` are addresses
    and numbers. Without `meets` it needs nothing of the kernel before it in a region, and doesn't wait for its end.
    """
    if parts <= 0:
        return
    kernel = _Queued(entry, arguments, parts, scratch_bytes, meets)
    if _local.kernels is not None:
        _local.kernels.append(kernel)
        return
    _start(kernel)


class region:  # noqa: N801
    """`with region():` kernels run at its end, in their order. What they use must live until then: see `hold`."""

    def __enter__(self) -> None:
        if _local.kernels is not None:
            raise RuntimeError("region: expected none to be open, one is")
        _local.kernels = []

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        kernels, _local.kernels = _local.kernels, None
        try:
            if kind is None and kernels:
                _Call(kernels).run()
        finally:
            _local.held.clear()


def again(key: Hashable, tensors: Sequence[torch.Tensor | None], make: Callable[[], object]) -> None:
    """Runs the kernels that `make` asks for in one region. They are kept by a key that says all they depend on but
    where `tensors` lie, and run again with the addresses of another call's.
    """
    kept_for = torch.get_num_threads(), key
    known = _local.calls.get(kept_for)
    if known is not None:
        known.run(tensors)
        return
    if _local.kernels is not None:
        raise RuntimeError("again: expected no region to be open, one is")
    _local.kernels = []
    before = _local.growths
    try:
        make()
        kernels, _local.kernels = _local.kernels, None
        call = _Call(kernels, tensors, list(_local.held))
        call.run(tensors)
        if call.is_clear and _local.growths == before:
            if len(_local.calls) >= _CALLS:
                _local.calls.clear()
            _local.calls[kept_for] = call
    finally:
        _local.kernels = None
        _local.held.clear()


def hold(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, which lives as long as the open region can be run."""
    if _local.kernels is not None:
        _local.held.append(tensor)
    return tensor


# of a kernel in a chain: its address, where its data are, whether all meet before it
_LINK = 3


@compiled
def _chain(sources: int):
    def kernel(data: int) -> None:
        count, barrier = load_integer(data), load_integer(data + 8)
        for i in range(count if sources else 0):
            link = data + 16 + 8 * _LINK * i
            if barrier and load_integer(link + 16):
                call_at(barrier, 0)
            call_at(load_integer(link), data + load_integer(link + 8))

    return kernel


class _Call:
    """Kernels that follow one another, laid out for their threads; addresses within `tensors` are put in each time."""

    def __init__(
        self,
        kernels: Sequence[_Queued],
        tensors: Sequence[torch.Tensor | None] = (),
        held: Sequence[torch.Tensor] = (),
    ) -> None:
        self.held = held
        self.threads = min(torch.get_num_threads(), max((kernel.parts for kernel in kernels), default=0))
        runtime = usable_openmp() if self.threads > 1 else None
        barrier = barrier_address() if runtime is not None else 0
        self.runtime = runtime
        alone = len(kernels) == 1
        # each a cache line's multiple
        rooms = [(kernel.scratch_bytes + 63) // 64 * 64 for kernel in kernels]
        room = scratch("parts", self.threads * sum(rooms))
        # without a barrier each kernel is a region of its own, in the same room
        self.apart = [] if alone or self.threads == 1 or barrier else [_Call([kernel], tensors) for kernel in kernels]
        links: list[int] = [] if alone else [len(kernels), barrier]
        data: list[int] = []
        first = 0 if alone else 2 + _LINK * len(kernels)
        self.counters: list[int] = []
        for kernel, each in zip(kernels, rooms, strict=True):
            start = first + len(data)
            self.counters += (start, start + 2)
            if not alone:
                links += (kernel.entry, 8 * start, kernel.meets and bool(data))
            data += (0, kernel.parts, 0, room, each, *kernel.arguments)
            room += self.threads * each
        self.entry = kernels[0].entry if alone else _chain()
        self.memory = array.array("q", links + data)
        self.places = _places(self.memory, tensors)
        places = [place for _, found in self.places for place, _ in found]
        # tensors that share memory would be taken for one another
        self.is_clear = len(places) == len(set(places))

    def run(self, tensors: Sequence[torch.Tensor | None] = ()) -> None:
        for call in self.apart:
            call.run(tensors)
        if self.apart or not self.threads:
            return
        memory = self.memory
        for counter in self.counters:
            memory[counter] = 0
        for index, places in self.places:
            base = tensors[index].data_ptr()  # type: ignore[union-attr]
            for place, offset in places:
                memory[place] = base + offset
        where = memory.buffer_info()[0]
        # `_launch` for what every layer takes, a frame less
        if self.threads > 1 and self.runtime is not None:
            self.runtime(self.entry, where, self.threads, 0)
        elif self.threads == 1:
            _function(self.entry)(where)
        else:
            _launch(self.entry, where, self.threads, None)


def _places(memory: Sequence[int], tensors: Sequence[torch.Tensor | None]) -> list[tuple[int, list[tuple[int, int]]]]:
    """By tensor, where an address within it stands, and how far into the tensor it points."""
    by_argument = []
    for index, tensor in enumerate(tensors):
        if tensor is None or not tensor.numel():
            continue
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        places = [(place, value - start) for place, value in enumerate(memory) if start <= value < end]
        if places:
            by_argument.append((index, places))
    return by_argument


def _start(kernel: _Queued) -> None:
    """A kernel alone, without what a `_Call` prepares for the next time."""
    entry, arguments, parts, scratch_bytes, _ = kernel
    threads = min(torch.get_num_threads(), parts)
    room = scratch("parts", threads * scratch_bytes) if scratch_bytes else 0
    data = array.array("q", (0, parts, 0, room, scratch_bytes, *arguments))
    _launch(entry, data.buffer_info()[0], threads, usable_openmp())


def _launch(entry: int, where: int, threads: int, runtime: Callable[..., object] | None) -> None:
    if threads == 1:
        _function(entry)(where)
    elif runtime is not None:
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
        if buffer is not None:
            hold(buffer)
            _local.calls.clear()
        _local.growths += 1
        buffer = _local.buffers[name] = torch.empty(size, dtype=torch.uint8)
    return buffer


def _after_fork() -> None:
    """Calls that were kept would start threads that aren't here."""
    _local.calls.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def kept_matrix(name: str, rows: int, columns: int) -> torch.Tensor:
    """fp32 [rows, columns] in the buffer of that name, nothing in it kept from before."""
    size = 4 * rows * columns
    return kept(name, size)[:size].view(torch.float32).view(rows, columns)


def address(tensor: torch.Tensor | None) -> int:
    """Where a tensor lies; 0 for None. It must live as long as the address is used."""
    return 0 if tensor is None else tensor.data_ptr()
