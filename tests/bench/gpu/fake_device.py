"""A GPU for a rehearsal on a machine without one: eager PyTorch for kernels, and what NVIDIA's tools print.

Put in place by LORAFAM_GPU_DEVICE=tests.bench.gpu.fake_device:FakeDevice. LORAFAM_FAKE_BAD names what goes wrong:
"dropout=wrong,row_norm=abort,lora_project=hang".
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

BAD = "LORAFAM_FAKE_BAD"
OUTPUTS = {
    "memcheck": "========= COMPUTE-SANITIZER\ndone: dropout, dense\n========= ERROR SUMMARY: 0 errors\n",
    "ncu": (
        "==PROF== Connected to process 4711 (/usr/bin/python3.12)\n"
        '==PROF== Profiling "lora_linear_kernel" - 0: 0%....50%....100% - 9 passes\n'
        "==PROF== Disconnected from process 4711\n"
        '"ID","Process ID","Process Name","Host Name","Kernel Name","Context","Stream","Block Size","Grid Size",'
        '"Device","CC","dram__bytes.sum.per_second","gpu__time_duration.sum",'
        '"sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active",'
        '"sm__inst_issued.avg.pct_of_peak_sustained_active","l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum"\n'
        '"","","","","","","","","","","","byte/second","ns","%","%",""\n'
        '"0","4711","python3.12","127.0.0.1","lora_linear_kernel","1","7","(128, 1, 1)","(224, 1, 1)","0","9.0",'
        '"2,512,345,678,901.23","18,976","n/a","61.25","12,345"\n'
    ),
    "racecheck": (
        "========= COMPUTE-SANITIZER\n"
        "========= Error: Race reported between Write access at lora_linear_kernel+0x1370 in lora_linear.py:151\n"
        "=========     and Read access at lora_linear_kernel+0x1910 in lora_linear.py:163 [8 hazards]\n"
        "=========\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
    ),
}


class FakeOps:
    """eager's ops, some of them bad."""

    def __getattr__(self, name: str) -> Any:
        from lorafam.backends import eager

        bad = dict(pair.split("=") for pair in os.environ.get(BAD, "").split(",") if pair)
        op = getattr(eager, name)
        return {"wrong": _wrong, "abort": _abort, "hang": _hang}[bad[name]](op) if name in bad else op


def _wrong(op: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        result = op(*arguments)
        return result * 1.5 if isinstance(result, torch.Tensor) else result

    return run


def _abort(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: os.abort()


def _hang(op: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: time.sleep(3600)


class FakeDevice:
    where = torch.device("cpu")
    largest = 256
    longest = 20.0 if "LORAFAM_FAKE_BAD" in os.environ else 300.0
    ops = FakeOps()
    architecture = "sm_90"

    def refusal(self) -> str | None:
        return None

    def card(self) -> dict[str, Any]:
        return {
            "name": "Rehearsed GPU 80GB",
            "compute_capability": "9.0",
            "memory_bytes": 85_000_000_000,
            "l2_bytes": 1 << 16,
            "multiprocessors": 132,
            "driver": "580.65.06",
        }

    def synchronize(self) -> None:
        return

    def seconds(self, call: Callable[[], Any]) -> float:
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def stream(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def graph(self, call: Callable[[], Any]) -> Callable[[], Any]:
        call()
        return call

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        call()
        return 123_456_789

    def kernel_times(self, call: Callable[[], Any]) -> list[tuple[str, float]]:
        call()
        return [("lora_linear_kernel", 12345.0)]

    def profiled(self, call: Callable[[], Any]) -> None:
        call()

    def tuned(self) -> Any:
        from tests.tune.fake_gpu import FakeGpu

        # half the warps, half the time
        return FakeGpu(seconds=lambda kernel, config: config.num_warps * 1e-6, cost=0.1).gpu()

    def clocks(self) -> dict[str, Any]:
        from lorafam.bench.gpu.cuda import parsed_clocks

        return parsed_clocks("1980, 2619, 312.45, 41, 0x0000000000000000")

    def tool(self, name: str) -> str | None:
        return f"/usr/local/cuda/bin/{name}"

    def run_tool(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        for name, output in OUTPUTS.items():
            if any(part.split("/")[-1] == name for part in command):
                return subprocess.CompletedProcess(command, 0, output, "")
        raise AssertionError(f"not rehearsed: {command}")


class SimulatedDevice(FakeDevice):
    """The real kernels, compiled for sm_90 and run by ptxsim: LORAFAM_BACKEND=simulate, LORAFAM_SIMULATE=sm_90."""

    largest = 64

    @property
    def ops(self) -> Any:  # type: ignore[override]
        from lorafam.backends import triton_gpu

        return triton_gpu
