"""A GPU for a rehearsal on a machine without one: eager PyTorch for kernels, and what NVIDIA's tools print.

Put in place by LORAFAM_GPU_DEVICE=tests.bench.gpu.fake_device:FakeDevice. LORAFAM_FAKE_BAD names what goes wrong:
"dropout=wrong,row_norm=abort,lora_project=hang".
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

BAD = "LORAFAM_FAKE_BAD"
OUTPUTS = {
    "memcheck": "========= COMPUTE-SANITIZER\ndone: dropout, dense\n========= ERROR SUMMARY: 0 errors\n",
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

    def graph(self, call: Callable[[], Any]) -> Callable[[], Any]:
        call()
        return call

    def peak_bytes(self, call: Callable[[], Any]) -> int:
        call()
        return 123_456_789

    def clocks(self) -> dict[str, Any]:
        from lorafam.bench.gpu.cuda import parsed_clocks

        return parsed_clocks("1980, 2619, 312.45, 41, 0x0000000000000000")

    def tool(self, name: str) -> str | None:
        return f"/usr/local/cuda/bin/{name}"

    def run_tool(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        for name, output in OUTPUTS.items():
            if name in command:
                return subprocess.CompletedProcess(command, 0, output, "")
        raise AssertionError(f"not rehearsed: {command}")
