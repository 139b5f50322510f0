"""Items that run kernels, with the real ones as compiled code: what is right passes, what isn't is named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from lorafam.bench.gpu.cases import Case, Context
from lorafam.bench.gpu.parts import compile_ahead, configurations, op
from lorafam.bench.gpu.store import Record

from lorafam.backends import triton_gpu
from lorafam.backends.triton_gpu.compile_ahead import Compiled
from tests.bench.gpu.fake_device import FakeDevice, SimulatedDevice
from tests.conftest import INTERPRETING, need_ptxsim

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Context:
    need_ptxsim()
    monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
    monkeypatch.setenv("LORAFAM_SIMULATE", "sm_90")
    for module in (configurations, op):
        monkeypatch.setattr(module, "device", SimulatedDevice)
    return Context(tmp_path, time.time() + 600, Record(tmp_path / "x.json"))


def test_every_shipped_configuration_of_a_kernel(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Case] = list(configurations.cases(context, "lora_project"))
    # 2 numbers of tokens, 2 sides that are alike here, and what the table has for a dtype
    assert len({case.name for case in found}) == len(found)
    assert {case.name.split(", ")[3].split(":")[0] for case in found} == {"bfloat16", "float16", "float32"}
    case = next(case for case in found if "float16" in case.name)
    assert case.run() == {}
    real = triton_gpu.lora_project
    monkeypatch.setattr(triton_gpu, "lora_project", lambda *arguments: real(*arguments) * 1.01)
    with pytest.raises(AssertionError, match="ratio"):
        case.run()


def test_a_kernel_that_nothing_launches_is_no_success(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_gpu, "lora_project", lambda *arguments: torch.zeros(1))
    (case,) = configurations.cases(context, "lora_project")
    with pytest.raises(RuntimeError, match="nothing asks for one of lora_project"):
        case.run()


def test_an_op_s_cases(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(op.cases(context, "dropout"))
    assert len({case.name for case in found}) == len(found) > 10
    found[0].run()
    real = triton_gpu.dropout
    monkeypatch.setattr(triton_gpu, "dropout", lambda *arguments: real(*arguments) * 1.05)
    with pytest.raises(AssertionError, match="ratio"):
        found[0].run()


def test_what_was_compiled_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run_apart(*what: object) -> Compiled:
        asked.append(what)
        return Compiled(3, 1, errors)

    monkeypatch.setattr(compile_ahead, "device", FakeDevice)
    monkeypatch.setattr("lorafam.backends.triton_gpu.compile_ahead.run_apart", run_apart)
    errors = {"dropout_kernel (1)": "ValueError: no"}
    found = compile_ahead.compiled()
    assert (found["kernels"], found["found"], found["errors"]) == (3, 1, errors)
    assert asked[0][:3] == ("sm_90", "Rehearsed GPU 80GB", FakeDevice().card()["multiprocessors"])
    errors = {str(index): "ValueError: no" for index in range(3)}
    with pytest.raises(RuntimeError, match="nothing compiles: ValueError: no"):
        compile_ahead.compiled()
