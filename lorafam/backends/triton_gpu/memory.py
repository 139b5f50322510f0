"""GPU memory that outlives the call it is allocated in, and when a call may not keep any."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from ...compat.torch import without_modes

Tensor = torch.Tensor
T = TypeVar("T", Tensor, tuple[Tensor, Tensor], dict[str, Tensor])

# by identity: a tensor's == is elementwise
_kept: dict[int, weakref.ref[torch.Tensor]] = {}


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph captures what is launched on the current stream of `device`."""
    if device.type != "cuda":
        return False
    # torch asks the current device's
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def kept_memory(device: torch.device, allocate: Callable[[], T]) -> T:
    """What `allocate` returns, its memory from torch's common pool and the current stream of `device`; no mode sees it.

    In a thread of its own, as a pool of the calling thread's (`torch.cuda.use_mem_pool`, the warm-up of compiled CUDA
    graphs) takes all that the thread allocates, and what stays behind there is an error or dies with the pool.
    """
    found = _allocated(device, allocate)
    for tensor in [found] if isinstance(found, Tensor) else found.values() if isinstance(found, dict) else found:
        _kept[id(tensor)] = weakref.ref(tensor, functools.partial(_gone, id(tensor)))
    return found


def is_kept(tensor: torch.Tensor) -> bool:
    """Whether it is `kept_memory`'s."""
    kept = _kept.get(id(tensor))
    return kept is not None and kept() is tensor


def _gone(identity: int, kept: weakref.ref[torch.Tensor]) -> None:
    if _kept.get(identity) is kept:
        del _kept[identity]


def _allocated(device: torch.device, allocate: Callable[[], T]) -> T:
    if device.type != "cuda":
        with without_modes():
            return allocate()
    stream = torch.cuda.current_stream(device)

    def run() -> T:
        with torch.cuda.stream(stream):
            return allocate()

    with ThreadPoolExecutor(1) as one:
        return one.submit(run).result()
