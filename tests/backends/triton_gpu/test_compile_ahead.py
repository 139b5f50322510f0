"""Kernels compiled ahead in other processes are the ones that launches look for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from lorafam.backends import eager, self_check_cases, triton_gpu
from lorafam.backends.triton_gpu import compile_ahead, launch, split
from tests.conftest import INTERPRETING, ON_GPU

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")

CASES = [case for case in self_check_cases.cases() if case.op in ("dropout", "lora_project") and "12 tok" in case.what]


class Driver:
    """Triton's driver of a GPU that isn't there: enough to compile for it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


@pytest.mark.skipif(ON_GPU, reason="it puts another driver in the place of the GPU's")
def test_launches_find_what_was_compiled_ahead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What Triton's own launch would compile, by Triton's own hit count."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("LORAFAM_SIMULATE", "sm_90")
    monkeypatch.setattr(self_check_cases, "cases", lambda: CASES)
    monkeypatch.setattr(split, "_MULTIPROCESSORS", split._MULTIPROCESSORS)
    what = {"architecture": "sm_90", "model": "Some GPU", "multiprocessors": 132, "workers": 2}
    first = compile_ahead.main(what)
    assert first.kernels >= len(CASES)
    assert first._replace(kernels=0) == compile_ahead.Compiled(0, 0, {})
    again = compile_ahead.main(what)
    assert again == first._replace(found=first.kernels)

    hits: list[bool] = []
    fresh, run = Driver(), JITFunction.run
    saved = {}

    def compiled(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        saved.setdefault(self, dict(self.device_caches))
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    monkeypatch.setattr(triton.knobs.compilation, "listener", lambda *_, cache_hit, **__: hits.append(cache_hit))
    monkeypatch.setattr(JITFunction, "run", compiled)
    monkeypatch.setattr(launch, "_without_gpu", lambda call, _: call() and None)
    monkeypatch.setattr(triton.runtime.driver, "_active", fresh)
    try:
        draw = self_check_cases.Draw(0, eager, torch.device("cpu"))
        for case in CASES:
            getattr(triton_gpu, case.op)(*case.make(draw))
    finally:
        for kernel in saved:
            kernel.device_caches.clear()
        split.multiprocessors.cache_clear()
    assert hits == [True] * first.kernels


def test_the_process_that_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs nothing of the one that starts it, and says why it failed."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with pytest.raises(RuntimeError, match="none"):
        compile_ahead.run_apart("sm_none", "Some GPU", multiprocessors=132, workers=2)


def test_a_kernel_that_does_not_compile_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(self_check_cases, "cases", lambda: CASES)
    monkeypatch.setattr(split, "_MULTIPROCESSORS", split._MULTIPROCESSORS)

    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Expected dtype fp32 but got fp64\nmore")

    monkeypatch.setattr(triton, "compile", refuse)
    what = {"architecture": "sm_90", "model": "Some GPU", "multiprocessors": 132, "workers": 1}
    try:
        found = compile_ahead.main(what)
    finally:
        split.multiprocessors.cache_clear()
    assert found.errors["dropout_kernel (1)"] == "ValueError: Expected dtype fp32 but got fp64"
    assert len(found.errors) == found.kernels


def test_a_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_ahead, "architecture", lambda _: "sm_90")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    monkeypatch.setattr(split, "multiprocessors", lambda _: 132)

    def killed(*_: Any) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(compile_ahead, "run_apart", killed)
    with pytest.warns(UserWarning, match=r"one after another, for some minutes: .*: killed"):
        compile_ahead.compile_ahead(torch.device("cuda", 0), os.cpu_count() or 1)
