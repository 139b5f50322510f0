"""GPU memory that outlives the call it is allocated in, and when a call may not keep any."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")


def is_captured(device: torch.device) -> bool:
    """Whether a CUDA graph captures what is launched on the current stream of `device`."""
    if device.type != "cuda":
        return False
    # torch asks the current device's
    with torch.cuda.device(device):
        return torch.cuda.is_current_stream_capturing()


def kept_memory(device: torch.device, allocate: Callable[[], T]) -> T:
    """What `allocate` returns, its memory from torch's common pool and the current stream of `device`.

    In a thread of its own, as a pool of the calling thread's (`torch.cuda.use_mem_pool`, the warm-up of compiled CUDA
    graphs) takes all that the thread allocates, and what stays behind there is an error or dies with the pool.
    """
    if device.type != "cuda":
        return allocate()
    stream = torch.cuda.current_stream(device)

    def run() -> T:
        with torch.cuda.stream(stream):
            return allocate()

    with ThreadPoolExecutor(1) as one:
        return one.submit(run).result()
