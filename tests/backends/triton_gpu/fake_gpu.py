"""GPUs that aren't there: what the backend and Triton's launch path ask of torch.cuda and of Triton's driver.

Tensors are the CPU's and say they are on a GPU; kernels aren't compiled, launches are noted.
"""

from __future__ import annotations

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

Tensor = torch.Tensor


class OnGpu0(Tensor):
    is_cuda, device = True, torch.device("cuda", 0)
    # an operation's result is the very tensor that a mode sees
    __torch_function__ = torch._C._disabled_torch_function_impl

    def get_device(self) -> int:
        return self.device.index


class OnGpu1(OnGpu0):
    device = torch.device("cuda", 1)


def on(device: Any, tensor: Tensor) -> Tensor:
    return tensor.as_subclass((OnGpu0, OnGpu1)[torch.device(device).index or 0])


class Launched(NamedTuple):
    """A launch that reached the driver; `arguments` by name."""

    kernel: Any
    device: int
    stream: int
    grid: tuple[int, ...]
    arguments: dict[str, Any]


class FakeKernel:
    """Instead of a compiled kernel."""

    def __init__(self, gpu: FakeGpu, source: Any):
        self.gpu, self.src = gpu, source
        self.function, self.packed_metadata = object(), object()
        self.metadata = types.SimpleNamespace(shared=0)

    def launch_metadata(self, grid: Any, stream: int, *arguments: Any) -> None:
        return None

    def run(self, x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
        assert function is self.function
        assert packed is self.packed_metadata
        if self.gpu.failing:
            raise RuntimeError("the launch failed")
        arguments = dict(zip(self.src.fn.arg_names, rest[3:], strict=True))
        self.gpu.launches.append(Launched(self, self.gpu.device, stream, (x, y, z), arguments))


class FakeGpu:
    """Two GPUs; what a test sets: the current device, each one's current stream, whether a graph captures."""

    def __init__(self) -> None:
        self.device, self.streams, self.capturing, self.failing = 0, [11, 12], False, False
        self.launches: list[Launched] = []
        self.compiling: Callable[[], object] = lambda: None
        self.zeroed: list[torch.device] = []
        self.settled = True

    # Triton's driver

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.streams[device]

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def compile(self, source: Any, **options: Any) -> FakeKernel:
        self.compiling()
        return FakeKernel(self, source)

    # torch.cuda

    @contextlib.contextmanager
    def on_device(self, device: Any) -> Iterator[None]:
        before, self.device = self.device, torch.device(device).index
        try:
            yield
        finally:
            self.device = before

    def current_stream(self, device: torch.device) -> Any:
        return types.SimpleNamespace(cuda_stream=self.streams[device.index], synchronize=lambda: None)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(triton.runtime.driver, "_active", self)
        monkeypatch.setattr(triton.compiler, "compile", self.compile)
        for name, fake in {
            "current_device": self.get_current_device,
            "current_stream": self.current_stream,
            "device": self.on_device,
            "stream": lambda stream: contextlib.nullcontext(),
            "is_current_stream_capturing": lambda: self.capturing,
            "get_device_properties": lambda device: types.SimpleNamespace(
                name="Fake", major=9, minor=0, multi_processor_count=16
            ),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch._C, "_cuda_getDevice", self.get_current_device, raising=False)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", self.get_current_stream, raising=False)
        for name in ("empty", "zeros", "tensor"):
            monkeypatch.setattr(torch, name, self._allocating(name, getattr(torch, name)))
        monkeypatch.setattr(Tensor, "to", _moving(Tensor.to))
        monkeypatch.setattr("lorafam.backends.selection.is_settled", lambda kind: self.settled)
        prepared = importlib.import_module("lorafam.backends.triton_gpu.prepared")
        monkeypatch.setattr(prepared, "PLAIN", (*prepared.PLAIN, OnGpu0, OnGpu1))

    def _allocating(self, name: str, made: Any) -> Any:
        def make(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if device is None or torch.device(device).type == "cpu":
                return made(*args, device=device, **kwargs)
            if name == "zeros":
                self.zeroed.append(device)
            return on(device, made(*args, **kwargs))

        return make


def _moving(to: Any) -> Any:
    def move(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], torch.device) and args[0].type == "cuda":
            return on(args[0], to(tensor, *args[1:], **kwargs))
        return to(tensor, *args, **kwargs)

    return move
