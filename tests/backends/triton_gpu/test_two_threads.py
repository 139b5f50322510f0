"""Two threads whose first calls meet inside compilation: each gets its own kernel and arguments, and Triton stays as it
was, throughout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from lorafam.kernels.kernel_call import KernelCall
from triton.runtime.jit import JITFunction

from lorafam.backends.triton_gpu import ahead_of_time
from lorafam.backends.triton_gpu.launch import compiled_only, launch
from lorafam.backends.triton_gpu.prepared_call import Started
from tests.backends.triton_gpu.fake_gpu import FakeGpu, FakeKernel, on
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")

ROUNDS = 200
ORIGINAL = JITFunction.run


def _copy(x_ptr, y_ptr, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)


def _negate(y_ptr, x_ptr, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    tl.store(y_ptr + offs, -tl.load(x_ptr + offs, mask=offs < n), mask=offs < n)


class Meeting:
    """Where the two wait for each other while they compile."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=60)
        self.patched = 0

    def __call__(self) -> None:
        self.barrier.wait()
        self.patched += JITFunction.run is not ORIGINAL


def met(device: str, same_kernel: bool, gpu: FakeGpu) -> list[tuple[Started, Any, dict[str, Any]]]:
    """What each of two threads was told of its launch, its kernel's function, and its arguments."""
    functions = [triton.jit(_copy), triton.jit(_copy if same_kernel else _negate)]

    def call(function: Any, n: int) -> tuple[Started, Any, dict[str, Any]]:
        x, y = torch.zeros(n), torch.zeros(n)
        if device == "cuda":
            x, y = on("cuda:0", x), on("cuda:0", y)
        arguments = {"x_ptr": x, "y_ptr": y, "n": n, "BLOCK": 128}
        started = launch(torch.device(device, 0), (), lambda: KernelCall(function, (n,), {**arguments, "num_warps": 4}))
        assert started is not None
        return started, function, arguments

    with ThreadPoolExecutor(2) as threads:
        return [
            future.result() for future in [threads.submit(call, *one) for one in zip(functions, (7, 9), strict=True)]
        ]


@pytest.mark.parametrize("same_kernel", [False, True], ids=["two kernels", "one kernel, two sizes"])
def test_first_launches_on_a_gpu(same_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    gpu.install(monkeypatch)
    gpu.compiling = meeting = Meeting()
    for _ in range(ROUNDS):
        gpu.launches.clear()
        for started, function, arguments in met("cuda", same_kernel, gpu):
            assert JITFunction.run is ORIGINAL
            first = [one for one in gpu.launches if one.kernel.src.fn is function]
            assert len(first) == 1
            assert _same(first[0].arguments, arguments)
            assert first[0].grid == (arguments["n"], 1, 1)
            # and again
            before = len(gpu.launches)
            started.start(list(started.arguments.values()))
            (again,) = gpu.launches[before:]
            assert again.kernel is first[0].kernel
            assert again.grid == first[0].grid
            assert _same(again.arguments, arguments)
    assert meeting.patched == 0


@pytest.mark.parametrize("same_kernel", [False, True], ids=["two kernels", "one kernel, two sizes"])
def test_first_launches_without_one(same_kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
    gpu, meeting = FakeGpu(), Meeting()

    def compile_(source: Any, **options: Any) -> FakeKernel:
        meeting()
        return gpu.compile(source)

    monkeypatch.setattr(triton, "compile", compile_)
    monkeypatch.setattr(ahead_of_time, "_compiled", {})
    for _ in range(ROUNDS):
        with compiled_only("sm_90") as launches:
            found = met("cpu", same_kernel, gpu)
        assert JITFunction.run is ORIGINAL
        for started, function, arguments in found:
            (first,) = (one for one in launches if one.kernel.src.fn is function)
            assert first.grid == (arguments["n"],)
            own = {name: value for name, value in arguments.items() if name != "BLOCK"}
            assert _same(first.arguments, own)
            assert _same(started.arguments, own)
    assert meeting.patched == 0


def _same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(found[name] is wanted[name] for name in wanted)


def test_a_patch_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[..., Any] = lambda *args, **kwargs: ORIGINAL(*args, **kwargs)  # noqa: E731
    monkeypatch.setattr(JITFunction, "run", run)
    meeting = Meeting()
    meeting.barrier = threading.Barrier(1)
    meeting()
    assert meeting.patched == 1
