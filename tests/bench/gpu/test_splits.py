"""`check/splits`: what is launched there is split on every card, and a launch that differs is found."""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

import pytest

pytest.importorskip("triton")
import torch
from lorafam.bench.gpu.parts import splits
from lorafam.bench.gpu.parts.counters import call_of
from lorafam.bench.kernel_table.cards import CARDS

from lorafam.backends import triton_gpu
from lorafam.backends.triton_gpu import split
from lorafam.backends.triton_gpu.launch import compiled_only
from tests.bench.gpu.fake_device import FakeDevice


class AskedError(Exception):
    """In place of a launch."""


@pytest.mark.parametrize(("op", "tokens"), splits.CALLS)
def test_it_is_split_on_every_card(op: str, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Whole(FakeDevice):
        largest = None

        ops = triton_gpu  # type: ignore[assignment]

    shares = []

    def asked(*about: Any, range_: int, **more: Any) -> Any:
        shares.append(split.share_of(split.multiprocessors(about[0]), range_=range_, **more) < range_)
        raise AskedError

    for module in ("lora_linear", "lora_linear_grad", "lora_project"):
        monkeypatch.setattr(sys.modules[f"lorafam.backends.triton_gpu.{module}"], "split_in", asked)
    monkeypatch.setattr("lorafam.bench.gpu.parts.counters.device", Whole)
    call_of.cache_clear()
    call = call_of(op, tokens, splits.SHAPE)
    try:
        for card in CARDS:
            split.stand_in_for(card.multiprocessors)
            with compiled_only(card.architecture), pytest.raises(AskedError):
                call()
    finally:
        split.stand_in_for(16)
        call_of.cache_clear()
    assert shares == [True] * len(CARDS)


@pytest.mark.parametrize("differs", [False, True])
def test_one_launch_that_differs_is_found(differs: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers, threads = itertools.count(), set()

    def call() -> torch.Tensor:
        threads.add(threading.get_ident())
        return torch.full((3,), 1.0 + (differs and next(numbers) == 7))

    monkeypatch.setattr(splits, "device", FakeDevice)
    monkeypatch.setattr(splits, "call_of", lambda op, tokens, shape: call)
    if differs:
        with pytest.raises(AssertionError, match="1 of 10 launches gave other bits than the first"):
            splits.same_bits("lora_linear", 1)
    else:
        assert splits.same_bits("lora_linear", 1) == {"launches": 10, "streams": 2}
