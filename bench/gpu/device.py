"""The GPU and NVIDIA's tools, behind one seam: everything that `make gpu` asks of them goes through a `Device`.

LORAFAM_GPU_DEVICE=module:class puts another one in place: a rehearsal's, on a machine without a GPU.
"""

from __future__ import annotations

import functools
import importlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

VARIABLE = "LORAFAM_GPU_DEVICE"
Call = Callable[[], Any]


class Device(Protocol):
    """`where`: the tensors' device. `ops` has the kernels' implementations. For a rehearsal, `largest`: sizes above it
    are cut to it, and `longest`: the seconds that a case may take at most.
    """

    where: Any
    largest: int | None
    longest: float | None

    @property
    def ops(self) -> Any: ...

    @property
    def architecture(self) -> str: ...

    def refusal(self) -> str | None:
        """Why nothing can be measured here, None where it can."""

    def card(self) -> dict[str, Any]: ...

    def synchronize(self) -> None:
        """Raises where something that was launched failed."""

    def seconds(self, call: Call) -> float:
        """Of the GPU, for what `call` puts on the current stream."""

    def stream(self) -> AbstractContextManager[Any]:
        """A stream of its own for what is launched inside, by this thread."""

    def graph(self, call: Call) -> Call:
        """Captures what `call` launches; the result replays it. Raises where it can't be captured."""

    def peak_bytes(self, call: Call) -> int:
        """The most memory that was allocated during `call`."""

    def kernel_times(self, call: Call) -> list[tuple[str, float]]:
        """Each kernel of a call with its nanoseconds, by torch's profiler; empty where that sees none."""

    def profiled(self, call: Call) -> None:
        """Calls a few times, the last between the marks that a profiler waits for."""

    def tuned(self) -> Any:
        """This GPU as `lorafam tune` takes it."""

    def clocks(self) -> dict[str, Any]:
        """Clocks, power and temperature now; empty where nvidia-smi isn't there."""

    def tool(self, name: str) -> str | None:
        """Path of a program such as ncu."""

    def run_tool(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        """Its output; raises subprocess.TimeoutExpired, and the program is gone then."""


@functools.cache
def device() -> Device:
    module, _, name = os.environ.get(VARIABLE, "lorafam.bench.gpu.cuda:Cuda").partition(":")
    return getattr(importlib.import_module(module), name)()


def median_seconds(replay: Call, budget: float, rounds: tuple[int, int] = (5, 50)) -> tuple[float, int]:
    """Median seconds of the GPU, and of how many rounds; as many as `budget` seconds allow."""
    gpu = device()
    start = time.perf_counter()
    gpu.seconds(replay)
    spent = max(1e-6, time.perf_counter() - start)
    count = max(rounds[0], min(rounds[1], int(budget / spent)))
    return statistics.median(gpu.seconds(replay) for _ in range(count)), count
