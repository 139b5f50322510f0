"""The clock of adapted layers: their forward and their part of the backward, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lorafam.bench.demo import layer_clock
from lorafam.bench.demo.layer_clock import LayerClock
from torch import nn

Tensor = torch.Tensor


class Sleeps(torch.autograd.Function):
    """x, after some seconds in each direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, sleep: Callable[[float], None], forward: float, backward: float) -> Tensor:
        ctx.sleep, ctx.backward_seconds = sleep, backward
        sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor, None, None, None]:
        ctx.sleep(ctx.backward_seconds)
        return grad_y, None, None, None


class Stub(nn.Module):
    def __init__(self, sleep: Callable[[float], None], forward: float, backward: float) -> None:
        super().__init__()
        self.sleep, self.seconds = sleep, (forward, backward)

    def forward(self, x: Tensor) -> Tensor:
        return Sleeps.apply(x, self.sleep, *self.seconds)


class Adapted(Stub):
    """The kind that is timed."""


@pytest.fixture
def sleep(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Moves the clock on, without waiting."""
    now = [0.0]
    monkeypatch.setattr(layer_clock.time, "perf_counter", lambda: now[0])

    def sleeping(seconds: float) -> None:
        now[0] += seconds

    return sleeping


def test_only_the_adapted_layers_count(sleep: Callable[[float], None]) -> None:
    model = nn.Sequential(Stub(sleep, 100, 200), Adapted(sleep, 1, 2), Stub(sleep, 400, 800), Adapted(sleep, 4, 8))
    clock = LayerClock(model, (Adapted,))
    assert clock.layers == [model[1], model[3]]
    y = model(torch.ones(3, requires_grad=True))
    assert clock.seconds == 5
    sleep(1000)
    y.sum().backward()
    assert clock.seconds == 15


def test_taken_resets(sleep: Callable[[float], None]) -> None:
    layer = Adapted(sleep, 1, 2)
    clock = LayerClock(layer, (Adapted,))
    layer(torch.ones(3, requires_grad=True)).sum().backward()
    assert clock.taken() == 3
    assert clock.taken() == 0
    layer(torch.ones(3))
    assert clock.taken() == 1


def test_real_time() -> None:
    layer = Adapted(time.sleep, 0.02, 0.03)
    clock = LayerClock(layer, (Adapted,))
    layer(torch.ones(3, requires_grad=True)).sum().backward()
    assert clock.taken() >= 0.05
