"""The seam's real side: CUDA through torch, nvidia-smi, ncu and compute-sanitizer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any

import torch

CLOCKS = {
    "sm_mhz": "clocks.current.sm",
    "memory_mhz": "clocks.current.memory",
    "watts": "power.draw",
    "celsius": "temperature.gpu",
    "limited_by": "clocks_throttle_reasons.active",
}
Call = Callable[[], Any]


class Cuda:
    """The current CUDA device."""

    largest = None
    longest = None

    def __init__(self) -> None:
        self.where = torch.device("cuda")
        # what is measured is what a GPU's tensors run on unasked
        os.environ.pop("LORAFAM_BACKEND", None)

    @property
    def ops(self) -> ModuleType:
        from lorafam.backends import triton_gpu

        return triton_gpu

    @property
    def architecture(self) -> str:
        major, minor = torch.cuda.get_device_capability()
        return f"sm_{major}{minor}"

    def refusal(self) -> str | None:
        from lorafam.backends import selection

        if not (torch.cuda.is_available() and torch.version.cuda):
            return f"expected a CUDA GPU, torch {torch.__version__} finds none"
        choice = selection.choose("cuda")
        return None if choice.backend == "triton" else f"lorafam's kernels can't run here: {choice.reason}"

    def card(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return {
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "l2_bytes": properties.L2_cache_size,
            "multiprocessors": properties.multi_processor_count,
            "driver": self._driver,
        }

    @functools.cached_property
    def _driver(self) -> str | None:
        return self._asked("driver_version")

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, call: Call) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def stream(self) -> AbstractContextManager[Any]:
        return torch.cuda.stream(torch.cuda.Stream())

    def graph(self, call: Call) -> Call:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            # a call sets itself up first: compiles, and chooses algorithms
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            call()
        return captured.replay

    def peak_bytes(self, call: Call) -> int:
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()

    def kernel_times(self, call: Call) -> list[tuple[str, float]]:
        call()
        torch.cuda.synchronize()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            call()
            torch.cuda.synchronize()
        events = [event for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
        return [(event.name, 1e3 * event.device_time) for event in events]

    def profiled(self, call: Call) -> None:
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
        call()
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()

    def tuned(self) -> Any:
        from lorafam.tune.this_gpu import this_gpu

        return this_gpu()

    def clocks(self) -> dict[str, Any]:
        # the last one's name depends on the driver
        fields = list(CLOCKS.values())
        return parsed_clocks(self._asked(",".join(fields))) or parsed_clocks(self._asked(",".join(fields[:-1])))

    def tool(self, name: str) -> str | None:
        return tool(name)

    def run_tool(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        return run_tool(command, seconds)

    def _asked(self, query: str) -> str | None:
        """What nvidia-smi answers for this process' first GPU."""
        if self.tool("nvidia-smi") is None:
            return None
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        chosen = ["-i", visible] if visible else []
        command = ["nvidia-smi", *chosen, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
        try:
            lines = self.run_tool(command, 20).stdout.strip().splitlines()
        except subprocess.TimeoutExpired:
            return None
        return lines[0] if lines else None


def parsed_clocks(line: str | None) -> dict[str, Any]:
    """nvidia-smi's CSV line for CLOCKS, the last left out or not: numbers as such, "[N/A]" as None."""
    values = [value.strip() for value in (line or "").split(",")]
    if len(values) not in (len(CLOCKS) - 1, len(CLOCKS)):
        return {}
    return {name: _number(value) for name, value in zip(CLOCKS, values, strict=False)}


def _number(value: str) -> Any:
    try:
        return float(value)
    except ValueError:
        return value if value.startswith("0x") else None


def tool(name: str) -> str | None:
    """On the path, or where CUDA is usually put."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def run_tool(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
