"""How long a call takes on a GPU under several choices of something, measured side by side.

The time between two events on the stream, from a cache that holds nothing of the call. The host runs ahead while the
cache is emptied, so its own time doesn't count. The choices take turns, so that a clock that sinks sinks for all.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch

# several times the last cache of any GPU so far: emptying it takes longer than Python takes for any call of an op
FILLER_BYTES = 1 << 30


class GpuTimer:
    """Callable: (call, choices, repeats) → median seconds of the call under each choice."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._filler: torch.Tensor | None = None

    def __call__(self, call: Callable[[], object], choices: Sequence[Callable[[], None]], repeats: int) -> list[float]:
        """`choices` put theirs into effect; after each the call runs untimed first, and so sets itself up."""
        seconds: list[list[float]] = [[] for _ in choices]
        for _ in range(repeats):
            for choose, found in zip(choices, seconds, strict=True):
                choose()
                call()
                found.append(self._once(call))
        return [statistics.median(found) for found in seconds]

    def _once(self, call: Callable[[], object]) -> float:
        if self._filler is None:
            self._filler = torch.empty(FILLER_BYTES, dtype=torch.uint8, device=self._device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._filler.zero_()
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3
