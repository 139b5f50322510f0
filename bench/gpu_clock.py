"""How long a call takes on a GPU: the time between two events on its stream, from a cache that holds nothing of it.

The host runs ahead while the cache is emptied, so its time to launch counts only where the GPU then waits for it, as it
would in a model.
"""

from __future__ import annotations

import torch

# for whoever reads the figures
NOTE = (
    "Times are of the GPU: between two events on its stream, with a cache that was emptied before each call. "
    "The time to launch counts only where the GPU waits for it."
)
# more than the last cache of any GPU so far
CACHE_BYTES = 256 << 20


class GpuClock:
    """For pytest-benchmark: `prepare` before each round; `read` is its clock, read before and after the call."""

    def __init__(self) -> None:
        self._start: torch.cuda.Event | None = None
        self._filler: torch.Tensor | None = None

    def prepare(self) -> None:
        """Empties the cache, and forgets a start whose call failed."""
        self._start = None
        if self._filler is None:
            self._filler = torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
        self._filler.zero_()

    def read(self) -> float:
        """0 before the call; after it the seconds that the GPU took."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        if self._start is None:
            self._start = event
            return 0.0
        event.synchronize()
        start, self._start = self._start, None
        return start.elapsed_time(event) / 1e3
