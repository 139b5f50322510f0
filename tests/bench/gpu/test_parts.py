"""The parts of `make gpu`, each with made-up answers of the GPU and its tools."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lorafam.bench.gpu import __main__ as gpu
from lorafam.bench.gpu import cuda, plan
from lorafam.bench.gpu.cases import Context, LeftOutError
from lorafam.bench.gpu.parts import counters, layers, machine, sanitizer, switched_off
from lorafam.bench.gpu.store import Record

from tests.bench.gpu.fake_device import OUTPUTS, FakeDevice

DENIED = (
    "==PROF== Connected to process 12\n==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA "
    "GPU Performance Counters on the target device 0.\n"
)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeDevice]:
    """Puts a FakeDevice with some attributes replaced in the place of every part's."""

    def put(**replaced: Any) -> FakeDevice:
        made = FakeDevice()
        for name, value in replaced.items():
            setattr(made, name, value)
        for module in (counters, layers, machine, sanitizer, switched_off):
            monkeypatch.setattr(module, "device", lambda: made)
        monkeypatch.setattr("lorafam.bench.gpu.device.device", lambda: made)
        return made

    return put


def answering(output: str, code: int = 0) -> Callable[..., subprocess.CompletedProcess[str]]:
    return lambda command, seconds: subprocess.CompletedProcess(command, code, output, "")


def test_the_order_is_that_of_worth() -> None:
    names = [item.name for item in plan.items("next", ("tests/ops/test_a.py",))]
    assert len(set(names)) == len(names)
    assert names[:3] == ["check/machine", "check/compile", "check/self-check"]
    places = [
        names.index(name)
        for name in (
            "check/op-lora_linear", "check/configurations-lora_linear", "check/sanitizer-memcheck", "tests/ops.test_a",
            "bench/peaks", "bench/untuned-qlora-4096x4096-first", "bench/untuned-qdora-14336x4096-first",
            "bench/untuned-lora-4096x4096-first", "bench/untuned-adalora-14336x4096-first",
            "bench/compiled-peft-4096x4096", "bench/untuned-qlora-1024x4096-first",
            "bench/untuned-qlora-4096x4096-more",
            "tune/4096x4096-1", "profile/kernels", "step/qlora", "bench/tuned-qlora-4096x4096-first",
        )
    ]  # fmt: skip
    assert places == sorted(places)
    assert {item.part for item in plan.items("bench", ())} == {"bench"}
    modules = Path(plan.__file__).parent / "parts"
    assert all((modules / f"{item.module}.py").is_file() for item in plan.items("next", ("x",)))


def test_every_op_that_the_self_check_compares_is_an_item() -> None:
    from lorafam.backends import self_check_cases

    assert {case.op for case in self_check_cases.cases()} == set(plan.CHECKED_OPS)


def test_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.arguments(["--part", "check"]).minutes == 8
    assert gpu.arguments(["--part", ""]).minutes == gpu.FOREVER
    with pytest.raises(SystemExit):
        gpu.arguments(["--part", "check", "--minutes", "0"])
    assert "--minutes: expected more than 0, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("../Quadro (T4) ", "quadro-t4"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert gpu.slug(name) == expected


def test_a_machine_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "device", cuda.Cuda)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"gpu: expected a CUDA GPU, torch .* finds none"):
        gpu.main(["--part", "check"])


def test_a_compiler_is_asked_for(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    fake(tool=lambda name: f"/bin/{name}" if name == "cc" else None)
    assert machine.compiler()["compiler"] == "/bin/cc"
    fake(tool=lambda name: None)
    with pytest.raises(RuntimeError, match="missing a C compiler"):
        machine.compiler()
    fake()
    monkeypatch.setattr(machine.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    with pytest.raises(RuntimeError, match=r"missing /nowhere/Python\.h"):
        machine.compiler()


@pytest.mark.parametrize(
    ("tool", "output", "code", "told"),
    [
        ("memcheck", "========= ERROR SUMMARY: 2 errors\n", 0, "2 found"),
        (
            "memcheck",
            "========= Invalid __global__ read of size 4 bytes\n=========     at x\n========= ERROR SUMMARY: 1 error\n",
            1,
            "1 found: Invalid __global__ read of size 4 bytes",
        ),
        ("memcheck", "Traceback\nImportError: x\n", 1, "gave no summary, code 1: ImportError: x"),
        ("memcheck", "Killed\n========= ERROR SUMMARY: 0 errors\n", 1, "what it watched ended with code 1"),
        ("racecheck", OUTPUTS["racecheck"], 0, "1 found: Error: Race reported between Write access"),
    ],
)
def test_what_the_sanitizer_finds(tool: str, output: str, code: int, told: str) -> None:
    with pytest.raises(RuntimeError, match=told):
        sanitizer.judged(tool, output, code)


def test_a_clean_sanitizer_and_none(fake: Any) -> None:
    assert sanitizer.judged("memcheck", OUTPUTS["memcheck"], 0) == {"calls": 1}
    clean = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert sanitizer.judged("racecheck", clean, 0) == {"calls": 0}
    fake(tool=lambda name: None)
    with pytest.raises(LeftOutError, match="compute-sanitizer is not installed"):
        sanitizer.clean("memcheck", ["dropout"])

    def slow(command: Any, seconds: float) -> Any:
        raise subprocess.TimeoutExpired(command, seconds)

    fake(run_tool=slow)
    with pytest.raises(LeftOutError, match="not done after 240 s"):
        sanitizer.clean("memcheck", ["dropout"])


def test_counters_by_ncu_or_times_by_the_profiler(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counters, "_run", lambda *_: None)
    commands: list[Any] = []
    fake(run_tool=lambda command, seconds: commands.append(command) or answering(OUTPUTS["ncu"])(command, seconds))
    assert counters.counted("x", "lora_linear", 16)["by"] == "ncu"
    assert commands[0][-3:] == ["lorafam.bench.gpu.profiled", "lora_linear", "16"]
    fake(run_tool=answering(DENIED))
    found = counters.counted("x", "lora_linear", 16)
    assert (found["by"], found["why"]) == ("torch.profiler", "ncu may not read the counters here (ERR_NVGPUCTRPERM)")
    assert found["kernels"] == [{"kernel": "lora_linear_kernel", "metrics": {"ns": 12345.0}}]
    fake(tool=lambda name: None)
    assert counters.counted("x", "lora_linear", 16)["why"] == "ncu is not installed"
    fake(tool=lambda name: None, kernel_times=lambda call: [])
    with pytest.raises(LeftOutError, match="saw no kernel"):
        counters.counted("x", "lora_linear", 16)
    fake(run_tool=answering("==PROF== Disconnected\n==WARNING== No kernels were profiled.\n"))
    with pytest.raises(RuntimeError, match="No kernels were profiled"):
        counters.counted("x", "lora_linear", 16)


def test_clocks_as_nvidia_smi_prints_them() -> None:
    assert cuda.parsed_clocks("1980, 2619, [N/A], 41, 0x0000000000000004") == {
        "sm_mhz": 1980.0, "memory_mhz": 2619.0, "watts": None, "celsius": 41.0, "limited_by": "0x0000000000000004",
    }  # fmt: skip
    assert list(cuda.parsed_clocks("1980, 2619, 312.45, 41")) == ["sm_mhz", "memory_mhz", "watts", "celsius"]
    assert cuda.parsed_clocks(None) == cuda.parsed_clocks("No devices were found") == {}


class Clock:
    """A GPU on which the n-th call takes n + 1 ms, and a graph's replay what its calls take."""

    def __init__(self, captures: bool = True) -> None:
        self.now, self.captures, self.called = 0.0, captures, []

    def call(self, number: int) -> Callable[[], None]:
        def run() -> None:
            self.called.append(number)
            self.now += 1e-3 * (number + 1)

        return run

    def seconds(self, call: Callable[[], Any]) -> float:
        before = self.now
        call()
        return self.now - before

    def graph(self, call: Callable[[], Any]) -> Callable[[], Any]:
        if not self.captures:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        return call


@pytest.mark.parametrize("captures", [True, False])
def test_weights_are_rotated_and_the_warm_figure_is_beside(captures: bool, fake: Any) -> None:
    clock = Clock(captures)
    fake(seconds=clock.seconds, graph=clock.graph)
    found = layers.measure([clock.call(0), clock.call(1), clock.call(2)])
    assert (found["gpu"], found["gpu_warm"], found["copies"]) == (pytest.approx(2e-3), pytest.approx(1e-3), 3)
    assert ("no_graph" in found) != captures
    assert found["clocks"]["watts"] == 312.45
    assert 0 < found["host"] <= found["wall"]


def test_there_are_copies_for_twice_the_l2(fake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = SimpleNamespace(
        tokens=2, in_features=4, out_features=8, layer=SimpleNamespace(base_layer=SimpleNamespace(weight=None))
    )
    fake(card=lambda: {"l2_bytes": 1000})
    calls: list[Any] = []
    monkeypatch.setattr(layers, "stored_bytes", lambda case: 300)
    monkeypatch.setattr(layers, "call_of", lambda contender, case, direction: calls.append(case) or (lambda: None))
    monkeypatch.setattr(layers, "measure", lambda calls: {"copies": len(calls)})
    record = Record(tmp_path / "x.json")
    context = Context(tmp_path, time.time(), record)
    about = {"method": "qlora"}
    with pytest.raises(RuntimeError, match="didn't pass"):
        layers._timed(context, lambda: made, "lorafam", "forward", "gate", about)
    record.end("gate", "passed")
    found = layers._timed(context, lambda: made, "lorafam", "forward", "gate", about)
    assert found["copies"] * 300 > 2 * 1000
    assert len({id(case) for case in calls}) == found["copies"]
    assert (found["bytes"], found["flops"]) == (300 + 2 * 2 * 12, 2 * 2 * 4 * 8)


def test_who_lacks_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers.importlib.util, "find_spec", lambda name: None)
    assert layers.lacking("eager", "qlora") == ["bitsandbytes"]
    assert layers.lacking("peft", "lora") == ["peft"]
    assert (
        layers.lacking("eager", "lora") == layers.lacking("dense", "qlora") == layers.lacking("lorafam", "qlora") == []
    )


def test_what_a_self_check_that_died_would_have_left(
    fake: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake()
    monkeypatch.setenv("LORAFAM_CACHE_DIR", str(tmp_path / "user"))
    Record(tmp_path / "check/op-dropout.json").end("float16, 3 tokens", "aborted", why="its process ended by SIGABRT")
    Record(tmp_path / "check/op-row_norm.json").end("dense, float16, rank 20", "passed")
    context = Context(tmp_path, time.time(), None)
    found = switched_off.kept(context)
    assert found["written"]
    assert json.loads(Path(found["file"]).read_text()) == {
        "failures": {"dropout, float16": "float16, 3 tokens: aborted: its process ended by SIGABRT"},
        "complete": True,
    }
    assert not switched_off.kept(context)["written"]
