"""Times of several calls that take turns, so that what else the machine does falls on all of them.

A turn is three calls that aren't timed and one that is: everybody finds the caches and the threads as a layer called
again and again does, not as the one before left them (its threads may still wait spinning, its weight fill the cache).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

from ..gpu_clock import GpuClock

Calls = Mapping[str, Callable[[], object]]
LEAST_ROUNDS, MOST_ROUNDS, WARM = 7, 200, 3


def medians(calls: Calls, seconds: float, clock: GpuClock | None = None) -> dict[str, float]:
    """Name → median seconds, over as many rounds as fit into `seconds`, each call once a round, by `clock` on a GPU."""
    read = clock.read if clock else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(next(iter(taken.values()))) < MOST_ROUNDS:
        for name, call in calls.items():
            for _ in range(WARM):
                call()
            if clock:
                clock.prepare()
            start = read()
            call()
            taken[name].append(read() - start)
        if time.perf_counter() > end and len(taken[name]) >= LEAST_ROUNDS:
            break
    return {name: statistics.median(times) for name, times in taken.items()}
