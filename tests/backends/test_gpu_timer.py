"""Who runs when, with events made up here; on a GPU the time itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam.backends import gpu_timer
from lorafam.backends.gpu_timer import GpuTimer
from tests.conftest import ON_GPU

CPU = torch.device("cpu")


def test_choices_take_turns_and_run_once_before_they_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    # milliseconds of the timed calls, in turn
    elapsed = iter([1.0, 10.0, 3.0, 30.0, 2.0, 20.0])

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, end: Any) -> float:
            return next(elapsed)

    monkeypatch.setattr(gpu_timer, "FILLER_BYTES", 8)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    choices = [lambda: done.append("a"), lambda: done.append("b")]
    assert GpuTimer(CPU)(lambda: done.append("call"), choices, 3) == [0.002, 0.02]
    one = ["call", "event", "call", "event"]
    assert done == ["a", *one, "b", *one] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
def test_more_work_takes_longer() -> None:
    small, large = (torch.randn(size, size, device="cuda") for size in (256, 4096))
    operand = [small]
    choices = [lambda: operand.__setitem__(0, small), lambda: operand.__setitem__(0, large)]
    quick, slow = GpuTimer(torch.device("cuda"))(lambda: operand[0] @ operand[0], choices, 5)
    assert 0 < quick < slow < 1
