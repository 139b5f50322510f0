"""What a driver refuses to launch, and that kernels with static shared memory are let have what they need."""

from __future__ import annotations

import importlib
import types
from typing import Any

import pytest
import torch

from tests.conftest import INTERPRETING, need_ptxsim

if INTERPRETING:
    pytest.skip("of compiled code only", allow_module_level=True)

import triton
from lorafam.kernels.kernel_call import KernelCall

from lorafam.backends import triton_gpu
from lorafam.backends.triton_gpu import launch, launch_limits
from lorafam.inspect.every_kernel import four_bit
from lorafam.inspect.machine_code import machine_code

# what nvdisasm counts besides: one KiB that the system has of each program
OF_THE_SYSTEM = {"sm_80": 0, "sm_90": 1024}
PTX = """
.visible .entry k(.param .u64 .ptr .global .align 1 k_param_0, .param .u32 k_param_1,
    .param .align 64 .b8 k_param_2[128], .param .u64 k_param_3)
{ .shared .align 16 .b32 table[8192]; }
"""


class Plain(types.SimpleNamespace):
    __hash__ = object.__hash__


def kernel(ptx: str = PTX, shared: int = 1024, warps: int = 4, arch: Any = 80, tmem: int | None = 0) -> Any:
    backend, size = ("cuda", 32) if isinstance(arch, int) else ("hip", 64)
    target = Plain(backend=backend, arch=arch, warp_size=size)
    metadata = Plain(target=target, shared=shared, num_warps=warps, tmem_size=tmem)
    return Plain(asm={"ptx": ptx} if backend == "cuda" else {}, metadata=metadata)


@pytest.fixture
def product(request: pytest.FixtureRequest) -> tuple[str, Any]:
    """The compiled product of a few tokens with a 4-bit weight."""
    x, P, B_hat = torch.zeros(8, 256, dtype=torch.bfloat16), torch.zeros(8, 16), torch.zeros(256, 16)
    with launch.compiled_only(request.param) as launches:
        triton_gpu.lora_linear(x, *four_bit(256, 256), P, B_hat, None, None)
    return request.param, launches[-1].kernel


@pytest.mark.parametrize("product", ["sm_80", "sm_90"], indirect=True)
def test_static_shared_memory_is_what_the_binary_has(product: tuple[str, Any]) -> None:
    architecture, compiled = product
    static = launch_limits.static_bytes(compiled)
    assert static > 32 << 10
    assert machine_code(compiled).shared_bytes == compiled.metadata.shared + static + OF_THE_SYSTEM[architecture]
    assert launch_limits.most_dynamic_of(compiled) == launch_limits.MOST_SHARED[architecture] - static


@pytest.mark.parametrize(
    ("arguments", "grid", "registers", "reason"),
    [
        ({}, (1,), 128, None),
        ({"shared": (163 << 10) - 32768}, (2**31 - 1, 65535), 128, None),
        ({"shared": (163 << 10) - 32767}, (1,), 128, "166913 bytes of shared memory, sm_80 has 166912 for a program"),
        ({"shared": 70 << 10, "arch": 86}, (1,), 128, "sm_86 has 101376"),
        ({"ptx": PTX.replace("8192", "12289")}, (1,), 128, "49156 bytes of static shared memory, at most 49152"),
        ({"warps": 64}, (1,), None, "2048 threads"),
        ({"arch": 100, "tmem": 512}, (1,), None, None),
        ({"arch": 100, "tmem": 784}, (1,), None, "784 columns of tensor memory, at most 512"),
        ({}, (2**31,), None, "a grid of 2147483648 along x"),
        ({}, (1, 65536), None, "a grid of 65536 along y"),
        ({"warps": 8}, (1,), 255, None),
        ({"warps": 16}, (1,), 129, "129 registers for each of 512 threads"),
        ({}, (1,), 256, "256 registers for each of 128 threads"),
        ({"ptx": PTX.replace("[128]", "[4096]")}, (1,), None, "4168 bytes of arguments"),
        ({"arch": "gfx942", "shared": 64 << 10}, (1,), 512, None),
        ({"arch": "gfx942", "shared": (64 << 10) + 1}, (1,), None, "gfx942 has 65536"),
    ],
)
def test_refusals(arguments: dict[str, Any], grid: tuple[int, ...], registers: int | None, reason: str | None) -> None:
    refused = launch_limits.refusal(kernel(**arguments), grid, registers)
    assert refused is None if reason is None else reason in str(refused)


def test_a_launch_that_a_driver_refuses_is_not_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
    monkeypatch.setattr(launch_limits, "MOST_GRID", (0, 0, 0))
    with pytest.raises(RuntimeError, match=r"dropout_kernel: a driver refuses this launch: a grid of 1 along x"):
        triton_gpu.dropout(torch.ones(4, 64), torch.tensor(1), 0.5)


def test_without_the_raised_limit_a_product_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    need_ptxsim()
    monkeypatch.setenv("LORAFAM_BACKEND", "simulate")
    x, P, B_hat = torch.ones(8, 256, dtype=torch.bfloat16), torch.ones(8, 16), torch.ones(64, 16)
    given = (x, *four_bit(64, 256), P, B_hat, None, None)
    triton_gpu.lora_linear(*given)
    monkeypatch.setattr(launch_limits, "most_dynamic", lambda static, most: None)
    with pytest.raises(importlib.import_module("ptxsim.errors").PtxError, match="invalid argument"):
        triton_gpu.lora_linear(*given)


class Driver:
    """Answers as the driver's library does, for kernels with so much static shared memory."""

    def __init__(self, static: int, error: int = 0):
        self.static, self.error, self.set = static, error, []

    def cuFuncGetAttribute(self, value: Any, attribute: int, function: Any) -> int:
        assert attribute == 1
        value._obj.value = self.static
        return 0

    def cuCtxGetDevice(self, device: Any) -> int:
        device._obj.value = 3
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        assert (attribute, device.value) == (97, 3)
        value._obj.value = 100 << 10
        return 0

    def cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> int:
        self.set.append((function.value, attribute, value))
        return self.error


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(triton.knobs.runtime, "kernel_load_end_hook", triton.knobs.HookChain(reversed=True))


def loaded(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens when Triton has loaded a kernel for a launch of ours, handle 7."""
    monkeypatch.setattr(launch_limits, "_driver", lambda: driver)
    hook = triton.knobs.runtime.kernel_load_end_hook
    loading = KernelCall({(1,): lambda: hook(object(), 7, "a_kernel", {}, "key")}, (1,), {})
    launch.launch(torch.device("cuda", 0), (), lambda: loading)


@pytest.mark.usefixtures("on_a_gpu")
def test_a_launch_raises_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(40 << 10)
    loaded(driver, monkeypatch)
    # attribute 8: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    assert driver.set == [(7, 8, 60 << 10)]
    loaded(driver, monkeypatch)
    assert len(driver.set) == 2, "the hook is there once"


@pytest.mark.usefixtures("on_a_gpu")
def test_kernels_without_static_shared_memory_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(0)
    loaded(driver, monkeypatch)
    assert driver.set == []


@pytest.mark.usefixtures("on_a_gpu")
def test_what_the_driver_says_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="a_kernel: cuFuncSetAttribute failed with CUDA error 1"):
        loaded(Driver(40 << 10, error=1), monkeypatch)
