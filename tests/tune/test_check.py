from __future__ import annotations

import pytest

from lorafam.backends import eager
from lorafam.backends.comparison import expected
from lorafam.tune.check import GpuLostError, failure
from lorafam.tune.workload import workload

from .fake_gpu import BROKEN, FATAL, PROJECT, RIGHT, WRONG, FakeGpu


@pytest.mark.parametrize(("how", "why"), [(RIGHT, ""), (WRONG, "AssertionError: result 0"), (BROKEN, "RuntimeError")])
def test_how_an_op_fares(how: str, why: str) -> None:
    gpu = FakeGpu(lambda *_: how).gpu()
    work = workload(PROJECT, gpu.device)
    wanted = expected("lora_project", eager.lora_project, work.arguments)
    found, told = failure(gpu, "lora_project", work.arguments, wanted, {"a": 1})
    assert found == how
    assert told.startswith(why)
    assert bool(told) is (how != RIGHT)


def test_a_lost_gpu() -> None:
    gpu = FakeGpu(lambda *_: FATAL).gpu()
    work = workload(PROJECT, gpu.device)
    wanted = expected("lora_project", eager.lora_project, work.arguments)
    with pytest.raises(GpuLostError, match=r"no longer answers after \{'a': 1\}: RuntimeError: an illegal"):
        failure(gpu, "lora_project", work.arguments, wanted, {"a": 1})
