"""A GPU whose launches do nothing: everything above the driver's call is what runs with one.

Tensors are the CPU's. lorafam's kernels are compiled for `ARCHITECTURE`, bound and started by Triton's own launcher,
whose call into the driver is left out; bitsandbytes' kernels and torch's products return memory as it is. What is left
of torch does run: sizes are small.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

ARCHITECTURE = "sm_90"
# what a kernel may ask for at its load
_LIMITS = {"max_shared_mem": 227 << 10, "max_num_regs": 1 << 16, "multiprocessor_count": 132, "warpSize": 32}


class Driver:
    """Triton's driver of one GPU."""

    def __init__(self) -> None:
        from triton.backends.nvidia import driver

        for name in ("ARG_CONSTEXPR", "ARG_KERNEL", "ARG_TUPLE", "PyKernelArg"):
            # of the module in C that it builds
            setattr(driver, name, SimpleNamespace)
        self.launcher_cls = driver.CudaLauncher
        self.launches = 0
        self.utils = SimpleNamespace(
            build_signature_metadata=lambda signature: b"",
            load_binary=lambda *args: (1, 1, 0, 0, 1024),
            get_device_properties=lambda device: _LIMITS,
            launch=self._launch,
            fill_tma_descriptor_tiled=lambda *args: b"",
        )

    def _launch(self, *args: Any) -> None:
        self.launches += 1

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", int(ARCHITECTURE.removeprefix("sm_")), 32)

    def allocate_default_profile_scratch(self, size: int, align: int, stream: int) -> None:
        return None


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """Inside, lorafam launches; outside it computes, on the CPU."""
    os.environ["LORAFAM_BACKEND"] = "simulate"
    try:
        yield
    finally:
        del os.environ["LORAFAM_BACKEND"]


def install() -> Driver:
    """Puts the stubs in for the rest of the process."""
    os.environ["LORAFAM_SIMULATE"] = ARCHITECTURE
    import triton

    directions: Any = importlib.import_module("lorafam.autograd.directions")
    grouped_lora_linear: Any = importlib.import_module("lorafam.autograd.grouped_lora_linear")
    launch: Any = importlib.import_module("lorafam.backends.triton_gpu.launch")
    split = importlib.import_module("lorafam.backends.triton_gpu.split")

    # memory as it is may hold numbers that a processor is slow with
    torch.set_flush_denormal(True)
    driver = Driver()
    triton.runtime.driver.set_active(driver)
    split.stand_in_for(_LIMITS["multiprocessor_count"])
    # of a GPU's tensors less is asked
    prepared: Any = importlib.import_module("lorafam.backends.triton_gpu.prepared")
    prepared._where = lambda tensor: (driver.get_current_device(), driver.get_current_stream(0))
    for module in (directions, grouped_lora_linear):
        module.together = lambda *args: None
    launch._without_gpu = lambda call, outputs: launch._on_gpu(call)
    # what products that are stubs would say of the CPU's kernels isn't to be kept
    self_check: Any = importlib.import_module("lorafam.backends.numba_cpu.self_check")
    self_check._found = lambda kind: None
    _stub_bitsandbytes()
    _stub_products()
    return driver


def _stub_bitsandbytes() -> None:
    import bitsandbytes  # noqa: F401  defines the operations

    def product(A: Any, B: Any, shape: Any, *args: Any) -> torch.Tensor:
        return A.new_empty((*A.shape[:-1], shape[0]))

    def decoded(A: Any, absmax: Any, blocksize: Any, kind: Any, shape: Any, dtype: Any) -> torch.Tensor:
        return A.new_empty(tuple(shape), dtype=dtype)

    def whole(A: Any, absmax: Any, code: Any, blocksize: Any, dtype: Any) -> torch.Tensor:
        return A.new_empty(A.shape, dtype=dtype)

    _replace("bitsandbytes", {"gemm_4bit": product, "dequantize_4bit": decoded, "dequantize_blockwise": whole})


def _stub_products() -> None:
    def mm(a: Any, b: Any) -> torch.Tensor:
        return a.new_empty((a.shape[0], b.shape[1]))

    def addmm(c: Any, a: Any, b: Any, **kwargs: Any) -> torch.Tensor:
        return mm(a, b)

    def into(*args: Any, out: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return out

    def add_into(c: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return c

    _replace("aten", {"mm": mm, "mm.out": into, "addmm": addmm, "addmm.out": into, "addmm_": add_into})


def _replace(namespace: str, stubs: dict[str, Callable[..., Any]]) -> None:
    library = torch.library.Library(namespace, "IMPL")
    # a library that is gone takes its functions along
    _libraries.append(library)
    for name, stub in stubs.items():
        library.impl(name, stub, "CPU", allow_override=True)


_libraries: list[Any] = []
