"""Zeros in which the launches of CUDA graphs count arrivals.

A launch leaves its counts at zero, so zeros that no other launch counts in are right for every replay of its graph, on
any stream and beside any other work, and are set once: graphs have no node for them. When a graph dies isn't known; its
counts, 4 bytes an output tile of each split launch, are not given out again.
"""

from __future__ import annotations

import threading

import torch

from .memory import kept_memory

Tensor = torch.Tensor

# int32 allocated at a time: for some 2,000 launches of a hundred tiles
_ZEROS = 1 << 18
# a launch's first count lies at a multiple of 16 bytes, as the compiler has found it in eager calls
_STEP = 4


class _Zeros:
    """Zeros of one device, of which the first `used` are given away."""

    def __init__(self, device: torch.device) -> None:
        self.zeros = kept_memory(device, lambda: torch.zeros(_ZEROS, dtype=torch.int32, device=device))
        if device.type == "cuda":
            # a graph that is replayed on another stream must find them
            torch.cuda.current_stream(device).synchronize()
        self.used = 0


# by device, the last is given out of; graphs know the others' addresses
_reserved: dict[torch.device, list[_Zeros]] = {}
_lock = threading.Lock()


def reserve_graph_counts(device: torch.device) -> None:
    """Allocates zeros where half of them are given away: outside of a capture, in which nothing may be kept."""
    with _lock:
        own = _reserved.setdefault(device, [])
        if not own or own[-1].used > _ZEROS // 2:
            own.append(_Zeros(device))


def graph_counts(device: torch.device, tiles: int) -> Tensor:
    """Zeros int32 [tiles] for one captured launch.

    None are left where nothing was launched on `device` before its first capture, or thousands of launches were
    captured since the last outside of one: then the graph's own, zeroed by a node of it.
    """
    size = -(-tiles // _STEP) * _STEP
    with _lock:
        own = _reserved.get(device)
        if own and own[-1].used + size <= _ZEROS:
            first = own[-1].used
            own[-1].used += size
            return own[-1].zeros[first : first + tiles]
    return torch.zeros(tiles, dtype=torch.int32, device=device)
