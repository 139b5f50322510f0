"""What a fine-tuning run gives back."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from .evaluate import HeldOut
from .settings import FinetuneConfig


@dataclass(frozen=True)
class FinetuneResult:
    """Losses in nats a token, memory in bytes, times in seconds.

    `resident_after_loading` is measured when the model is loaded, quantised and adapted; `peak_resident` while it
    trains (held-out losses in between included). `step_seconds` has every step of this process, the first ones of
    which may compile kernels.
    """

    config: FinetuneConfig
    before: HeldOut
    after: HeldOut
    step_seconds: tuple[float, ...]
    trainable_parameters: int
    resident_after_loading: int
    peak_resident: int
    memory_source: str
    adapter: Path
    log: Path
    curves: Path

    @property
    def seconds_per_step(self) -> float | None:
        """The median over the steps of this process, None when there was none left to make."""
        return statistics.median(self.step_seconds) if self.step_seconds else None

    @property
    def fall(self) -> tuple[float, float]:
        """How far the held-out loss fell, paired by chunk, and the standard error of that."""
        return self.before.fall_to(self.after)

    @property
    def extra_memory(self) -> int:
        """Peak resident memory minus that after loading."""
        return self.peak_resident - self.resident_after_loading
