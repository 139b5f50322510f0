"""The names of Triton's that it doesn't promise: what is done with them is what Triton itself does."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import INTERPRETING

if INTERPRETING:
    pytest.skip("of compiled code only", allow_module_level=True)

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from lorafam.backends import selection
from lorafam.compat import triton as compat


@triton.jit(do_not_specialize=["shift"])
def _scale_kernel(x_ptr, y_ptr, absent_ptr, n, shift, factor, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    y = tl.load(x_ptr + offs, mask=offs < n) * factor + shift
    if absent_ptr is not None:
        y += tl.load(absent_ptr)
    tl.store(y_ptr + offs, y, mask=offs < n)


class Driver:
    """What Triton's launch path asks of a GPU's driver; notes every launch as the launcher gets it."""

    def __init__(self) -> None:
        self.stream, self.launches, self.utils = 7, [], self

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def get_current_target(self) -> compat.GPUTarget:
        return compat.GPUTarget("cuda", 90, 32)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10}

    def load_binary(self, *_: Any) -> tuple[object, int, int, int, int]:
        return object(), 99, 32, 0, 1024

    def unload_module(self, module: object) -> None:
        pass

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *arguments: self.launches.append(arguments)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    fake = Driver()
    monkeypatch.setattr(triton.runtime.driver, "_active", fake)
    return fake


def arguments(n: int) -> dict[str, Any]:
    x, y = torch.zeros(n), torch.zeros(n + 1)[1:]
    return {"x_ptr": x, "y_ptr": y, "absent_ptr": None, "n": n, "shift": 16, "factor": 2.5, "BLOCK": 128}


def test_a_launch_again_is_triton_s_own(driver: Driver) -> None:
    given = arguments(250)
    kernel = _scale_kernel[(2, 3)](**given, num_warps=2)
    driver.stream = 8
    compat.launcher(kernel, (2, 3))(list(given.values()))
    first, again = driver.launches
    assert first[:5] == (2, 3, 1, 7, 99)
    assert again[:5] == (2, 3, 1, 8, 99)
    # the launch's metadata is made anew
    assert len(first) == len(again) == 9 + len(given)
    for index, (one, other) in enumerate(zip(first, again, strict=True)):
        assert index in (3, 6) or one is other or one == other, index


@pytest.mark.parametrize("n", [1, 250, 256])
def test_what_is_compiled_for_a_gpu_is_what_triton_compiles_on_it(n: int, driver: Driver) -> None:
    given = arguments(n)
    kernel = _scale_kernel[(2,)](**given, num_warps=2)
    bound = compat.bound(_scale_kernel, driver.get_current_target(), {**given, "num_warps": 2})
    ours = triton.compile(bound.source, target=driver.get_current_target(), options=bound.options)
    assert ours.asm["ptx"] == kernel.asm["ptx"]
    assert ours.metadata.num_warps == 2
    constants = {"BLOCK", "absent_ptr"} | ({"n"} if n == 1 else set())
    assert list(bound.arguments) == [name for name in given if name not in constants]
    assert all(value is given[name] for name, value in bound.arguments.items())


def test_the_key_tells_kernels_apart() -> None:
    target = compat.GPUTarget("cuda", 90, 32)

    def key(**changed: Any) -> tuple[str, str]:
        return compat.bound(_scale_kernel, target, {**arguments(256), "num_warps": 2, **changed}).key

    assert key() == key() == key(n=512) == key(x_ptr=torch.zeros(4))
    keys = {key(), key(n=250), key(n=1), key(BLOCK=64), key(num_warps=4), key(x_ptr=torch.zeros(4).half())}
    assert len(keys) == 6


def test_an_unknown_option_is_told() -> None:
    with pytest.raises(KeyError, match="warps"):
        compat.bound(_scale_kernel, compat.GPUTarget("cuda", 90, 32), {**arguments(256), "warps": 2})


@pytest.fixture
def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A later Triton has no launcher in its cache, and can't build one."""

    class Driver:
        @property
        def utils(self) -> None:
            raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(triton.knobs.build, "impl", None)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(compat, "_missing_headers", lambda: None)


@pytest.mark.usefixtures("without_cache")
def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compat.missing_to_launch() is None
    monkeypatch.setattr(shutil, "which", lambda name: None)
    told = f"triton {triton.__version__} compiles its launcher in C, and finds no gcc or clang (install one or set CC)"
    assert compat.missing_to_launch() == told
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/clang" if name == "clang" else None)
    assert compat.missing_to_launch() is None
    monkeypatch.setenv("CC", "icx")
    assert "finds no icx, which CC names" in str(compat.missing_to_launch())
    monkeypatch.setattr(triton.knobs.build, "impl", lambda *_: "")
    assert compat.missing_to_launch() is None


def test_headers_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path / scheme)})
    monkeypatch.setattr(sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.delenv("CPATH", raising=False)
    missing = compat._missing_headers()
    assert f"finds no Python.h in {tmp_path}/posix_prefix (install python3" in str(missing)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "Python.h").touch()
    monkeypatch.setenv("CPATH", f"/nowhere:{tmp_path}/elsewhere")
    assert compat._missing_headers() is None


@pytest.mark.usefixtures("without_cache")
@pytest.mark.parametrize(("version", "needed"), [("3.6.0", True), ("3.7.1", False), ("3.10.0+git1", False)])
def test_a_launcher_in_the_cache_needs_no_compiler_where_it_is_the_only_one(
    version: str, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())
    monkeypatch.setattr(triton, "__version__", version)
    assert (compat.missing_to_launch() is not None) == needed


@pytest.mark.parametrize(
    ("version", "array", "missing"), [("3.6.0", "2.4.6", True), ("3.6.0", "2.3.5", False), ("3.7.1", "2.4.6", False)]
)
def test_an_interpreter_that_cannot_run_is_refused(
    version: str, array: str, missing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "__version__", version)
    monkeypatch.setattr("numpy.__version__", array)
    monkeypatch.setenv(selection.VARIABLE, "interpret")
    selection._choose.cache_clear()
    if missing:
        with pytest.raises(RuntimeError, match=r"the interpreter of triton 3\.6\.0 needs numpy before 2\.4"):
            selection.choose("cpu")
    else:
        assert selection.choose("cpu").backend == "interpret"
    selection._choose.cache_clear()


def test_a_descriptor_says_whether_it_rounds() -> None:
    descriptor = TensorDescriptor.from_tensor(torch.zeros(16, 16), [16, 16])
    assert compat.with_rounding(descriptor) is descriptor
    assert descriptor.round_f32_to_tf32 is False
    assert compat.with_rounding(3) == 3
