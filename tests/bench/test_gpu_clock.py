"""The order of the clock's events, with a GPU that counts calls; and on a GPU where there is one."""

from __future__ import annotations

import itertools

import pytest
import torch
from lorafam.bench import gpu_clock
from lorafam.bench.gpu_clock import GpuClock

TICK = itertools.count()


class CountedEvent:
    """Each event is recorded one millisecond after the one before."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.synchronized = False

    def record(self) -> None:
        self.at = next(TICK)

    def synchronize(self) -> None:
        self.synchronized = True

    def elapsed_time(self, end: CountedEvent) -> float:
        assert end.synchronized
        return float(end.at - self.at)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> GpuClock:
    monkeypatch.setattr(torch.cuda, "Event", CountedEvent)
    clock = GpuClock()
    clock._filler = torch.ones(8)
    return clock


def test_zero_before_and_seconds_after(clock: GpuClock) -> None:
    for _ in range(2):
        clock.prepare()
        assert clock.read() == 0.0
        next(TICK)
        assert clock.read() == pytest.approx(2e-3)
    assert clock._filler is not None
    assert not clock._filler.any()


def test_a_failed_call_does_not_shift_the_next(clock: GpuClock) -> None:
    clock.prepare()
    clock.read()
    clock.prepare()
    assert clock.read() == 0.0
    assert clock.read() == pytest.approx(1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_on_a_gpu() -> None:
    """Filling the cache once takes longer than filling a 64th of it."""
    clock, seconds = GpuClock(), {}
    for parts in (1, 64):
        block = torch.empty(gpu_clock.CACHE_BYTES // parts, dtype=torch.uint8, device="cuda")
        for _ in range(3):
            clock.prepare()
            clock.read()
            block.fill_(1)
            seconds[parts] = clock.read()
    assert seconds[1] > seconds[64] > 0
