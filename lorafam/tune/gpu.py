"""What is tuned for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

Timer = Callable[[Callable[[], object], Sequence[Callable[[], None]], int], list[float]]


class Gpu(NamedTuple):
    """`ops` has the implementations, `timer` is as `GpuTimer`, `clock` counts seconds, `probe` raises where the GPU no
    longer answers.
    """

    model: str
    architecture: str
    device: torch.device
    ops: Any
    timer: Timer
    clock: Callable[[], float]
    probe: Callable[[], None]
