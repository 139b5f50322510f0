"""The search at one point: uphill, right configurations alone, a margin, a time."""

from __future__ import annotations

import math
from typing import Any

import pytest
from lorafam.kernels.launch_config import LaunchConfig
from lorafam.kernels.launch_table import launch_config, preferred

from lorafam.tune.check import GpuLostError
from lorafam.tune.search import MARGIN, Outcome, search
from lorafam.tune.workload import workload

from .fake_gpu import ARCHITECTURE, BROKEN, FATAL, PROJECT, RIGHT, WRONG, FakeGpu, block

SHIPPED = launch_config("lora_project", ARCHITECTURE, "bfloat16", 4, K=128, rank=16)


def run(fake: FakeGpu, **more: Any) -> Outcome:
    gpu = fake.gpu()
    return search(workload(PROJECT, gpu.device), gpu, **{"deadline": math.inf, **more})


def faster_by_block_k(kernel: str, config: LaunchConfig) -> float:
    """Fastest at BLOCK_K 512, three steps from the shipped 64."""
    return 1 + abs(math.log2(config["BLOCK_K"] / 512))


def test_goes_uphill_to_what_is_fastest() -> None:
    found = run(FakeGpu(seconds=faster_by_block_k))
    assert found.finished
    assert found.shipped == SHIPPED
    assert found.best is not None
    assert found.best["BLOCK_K"] == 512
    assert found.seconds == {"shipped": 4.0, "best": 1.0}
    assert (found.question.tokens, found.question.K, found.question.rank) == (4, 128, 16)
    assert (found.wrong, found.broken) == (0, 0)
    assert found.measured > 10
    assert preferred(ARCHITECTURE) == {}


@pytest.mark.parametrize(("gain", "wins"), [(MARGIN - 0.005, False), (MARGIN + 0.005, True)])
def test_wins_by_a_margin_alone(gain: float, wins: bool) -> None:
    found = run(FakeGpu(seconds=lambda _, config: 1 - gain * (config.num_stages == 2)))
    assert (found.best != found.shipped) is wins
    assert found.seconds["best"] == pytest.approx(1 - gain if wins else 1)


@pytest.mark.parametrize("how", [WRONG, BROKEN])
def test_what_is_wrong_or_does_not_run_is_left_out_and_counted(how: str) -> None:
    fake = FakeGpu(
        behaviour=lambda _, config: how if config["BLOCK_K"] > 128 else RIGHT,
        seconds=faster_by_block_k,
    )
    found = run(fake)
    assert found.best is not None
    assert found.best["BLOCK_K"] == 128
    assert getattr(found, how) >= 1


def test_what_is_wrong_at_the_odd_shape_does_not_win() -> None:
    fake = FakeGpu(seconds=faster_by_block_k)
    launched = fake._launched
    # the odd shape's rank is 20
    fake._launched = lambda kernel, config, result: launched(  # type: ignore[method-assign]
        kernel, config, result + (result.shape[1] == 20 and config["BLOCK_K"] == 512)
    )
    found = run(fake)
    assert found.best is not None
    assert found.best["BLOCK_K"] != 512
    assert found.best != SHIPPED
    assert found.wrong >= 1


@pytest.mark.parametrize(("how", "why"), [(WRONG, "AssertionError"), (BROKEN, "RuntimeError: out of resource")])
def test_a_shipped_configuration_that_is_not_right_is_replaced(how: str, why: str) -> None:
    found = run(FakeGpu(behaviour=lambda _, config: how if config == SHIPPED else RIGHT))
    assert found.shipped is None
    assert found.best is not None
    assert found.failure.startswith(why)
    nothing = run(FakeGpu(behaviour=lambda *_: how))
    assert (nothing.best, nothing.measured) == (None, 0)


def test_stops_in_time_and_starts_from_what_is_known() -> None:
    fake = FakeGpu(seconds=faster_by_block_k, cost=1.0)
    found = run(fake, deadline=5.0)
    assert not found.finished
    assert len(set(fake.launched)) < 8
    best = LaunchConfig(tuple({**dict(SHIPPED.blocks), "BLOCK_K": 512}.items()), 4, 1, SHIPPED.target)
    assert run(FakeGpu(seconds=faster_by_block_k), deadline=0.0).best == SHIPPED
    assert run(FakeGpu(seconds=faster_by_block_k), deadline=math.inf, start=best).best["BLOCK_K"] == 512  # type: ignore[index]


def test_a_lost_gpu_names_the_configuration_which_can_be_avoided() -> None:
    def kills(kernel: str, config: LaunchConfig) -> str:
        return FATAL if config["BLOCK_R"] == 32 else RIGHT

    with pytest.raises(GpuLostError, match=r"no longer answers after .*'BLOCK_R': 32.*: RuntimeError: an illegal"):
        run(FakeGpu(behaviour=kills))
    assert preferred(ARCHITECTURE) == {}
    killers = []
    while True:
        try:
            run(FakeGpu(behaviour=kills), avoid=killers)
        except GpuLostError as error:
            killers.append(error.tried)
        else:
            break
    assert killers
    assert block("BLOCK_R")("", SHIPPED) == 16
