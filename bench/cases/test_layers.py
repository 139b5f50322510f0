"""One layer, square: forward, and forward + backward, of the four methods."""

from __future__ import annotations

import functools
import json
import os
import time
from typing import Any

import pytest
import torch
from lorafam.bench.case import Case, make_case
from lorafam.bench.contenders import PEERS, case_for, forward_of, train_of
from lorafam.bench.gate import check
from lorafam.bench.gpu_clock import GpuClock

# what to run comes from run.py
PLAN = json.loads(os.environ["LORAFAM_BENCH_PLAN"])
BUDGET = PLAN["seconds"]
CLOCK = GpuClock() if PLAN["device"] == "cuda" else None
# on a GPU a call takes microseconds
ROUNDS = (20, 200) if CLOCK else (5, 60)
pytestmark = [pytest.mark.benchmark(timer=CLOCK.read)] if CLOCK else []


# those held to the rule before they are timed; tests/bench/test_gate.py holds eager and PEFT, the rule's measure, to it
GATED = {"lorafam", *PEERS}


@functools.lru_cache(maxsize=1)
def made_case(name: str, size: int, tokens: int) -> Case:
    return make_case(name, size, tokens, getattr(torch, PLAN["dtype"]), PLAN["rank"], PLAN["device"])


@functools.lru_cache(maxsize=1)
def passes(contender: str, name: str, size: int, tokens: int) -> None:
    """Raises where it doesn't, and isn't asked again where it does."""
    check(made_case(name, size, tokens), contender)


# contenders last: those of one case run next to each other
@pytest.mark.parametrize("contender", PLAN["contenders"])
@pytest.mark.parametrize("direction", ["forward", "train"])
@pytest.mark.parametrize("tokens", PLAN["tokens"])
@pytest.mark.parametrize("size", PLAN["sizes"])
@pytest.mark.parametrize("name", PLAN["methods"])
def test_layer(benchmark: Any, name: str, size: int, tokens: int, direction: str, contender: str) -> None:
    if contender in GATED:
        passes(contender, name, size, tokens)
    case = case_for(contender, made_case(name, size, tokens))
    call = forward_of(contender, case)[0] if direction == "forward" else train_of(contender, case)
    start = time.perf_counter()
    call()
    call()
    if CLOCK:
        torch.cuda.synchronize()
    rounds = int(BUDGET / max(1e-9, (time.perf_counter() - start) / 2))
    benchmark.extra_info.update(
        name=name,
        size=size,
        tokens=tokens,
        direction=direction,
        contender=contender,
        dtype=PLAN["dtype"],
        rank=PLAN["rank"],
    )
    setup = CLOCK.prepare if CLOCK else None
    benchmark.pedantic(call, setup=setup, rounds=max(ROUNDS[0], min(rounds, ROUNDS[1])), iterations=1)
