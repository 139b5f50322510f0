"""Which way a product runs: the fastest that is right, by the margin."""

from __future__ import annotations

from typing import Any

import pytest
from lorafam.kernels.paths import preferred_paths

from lorafam.tune.check import GpuLostError
from lorafam.tune.route import ROUTES, fastest_route
from lorafam.tune.table import PATHS, configuration, is_won, rows_of
from lorafam.tune.workload import workload

from .fake_gpu import ARCHITECTURE, BROKEN, FATAL, PATH, RIGHT, WRONG, FakeGpu

FUSED, CUBLAS, TRITON = "fused", "staged by cublas", "staged by triton"


def run(seconds: dict[str, float], how: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    fake = FakeGpu(lambda route, _: (how or {}).get(route, RIGHT), lambda route, _: seconds[route])
    gpu = fake.gpu()
    found = fastest_route(PATH, workload(PATH, gpu.device), gpu, **more)
    assert preferred_paths(ARCHITECTURE) == {}
    return found


def test_the_fastest_is_taken() -> None:
    found = run({FUSED: 3.0, CUBLAS: 2.0, TRITON: 1.0})
    assert (found["shipped"], found["best"]) == ({**ROUTES[0], "seconds": 3.0}, {**ROUTES[2], "seconds": 1.0})
    assert rows_of([found], PATHS) == {"lora_linear": [{"tokens": 64, "N": 64, "K": 128, **ROUTES[2]}]}
    assert rows_of([found]) == {}


def test_a_margin_is_asked_for() -> None:
    found = run({FUSED: 1.0, CUBLAS: 0.98, TRITON: 2.0})
    assert not is_won(found)
    assert found["best"] == found["shipped"]


def test_what_is_wrong_or_does_not_run_is_not_taken() -> None:
    seconds = {FUSED: 3.0, CUBLAS: 1.0, TRITON: 2.0}
    found = run(seconds, {CUBLAS: WRONG, TRITON: BROKEN})
    assert (is_won(found), found["measured"], found["wrong"], found["broken"]) == (False, 1, 1, 1)
    found = run(seconds, {FUSED: BROKEN})
    assert found["shipped"] is None
    assert found["failure"].startswith("RuntimeError: out of resource")
    assert configuration(found["best"]) == ROUTES[1]
    assert run(seconds, dict.fromkeys(seconds, WRONG))["best"] is None


def test_what_takes_the_gpu_down_is_named_and_can_be_avoided() -> None:
    seconds, how = dict.fromkeys((FUSED, CUBLAS, TRITON), 1.0), {TRITON: FATAL}
    with pytest.raises(GpuLostError) as raised:
        run(seconds, how)
    assert raised.value.tried == ROUTES[2]
    assert run(seconds, how, avoid=[raised.value.tried])["broken"] == 1
