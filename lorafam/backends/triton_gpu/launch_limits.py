"""What a driver accepts of a launch, and how kernels with static shared memory are let have what they need.

A program has 48 KiB of shared memory, static and dynamic together, unless its launcher asks for more. Triton's asks
where the dynamic part alone is over 48 KiB. The decoder's tables are static (`tiles/nf4_decode`, `tiles/scale_table`),
so for kernels that have any the limit is raised here, when Triton has loaded them.

Source of the limits: CUDA C++ programming guide, "Compute capabilities"; CUDA driver API, cuFuncSetAttribute.
"""

from __future__ import annotations

import ctypes
import functools
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
import triton

# bytes of shared memory: what a program has unasked, and the most it may ask for
UNASKED = 48 << 10
MOST_SHARED = {
    "sm_80": 163 << 10,
    "sm_86": 99 << 10,
    "sm_87": 163 << 10,
    "sm_89": 99 << 10,
    "sm_90": 227 << 10,
    "sm_100": 227 << 10,
    "sm_103": 227 << 10,
    "sm_120": 99 << 10,
    "sm_121": 99 << 10,
    "gfx942": 64 << 10,
    "gfx950": 160 << 10,
}
MOST_THREADS, MOST_REGISTERS, MOST_REGISTERS_OF_A_PROGRAM = 1024, 255, 1 << 16
# a thread's registers are given out by eights
REGISTERS_AT_ONCE = 8
# of an accumulator's tensor memory; Triton raises when it loads a kernel, whose code is a trap
MOST_TENSOR_MEMORY = 512
MOST_GRID = (2**31 - 1, 65_535, 65_535)
# before CUDA 12.1, and so with every driver
MOST_PARAMETER_BYTES = 4096

_STATIC = re.compile(r"\.shared\s+\.align\s+(\d+)\s+\.b(\d+)\s+[\w$]+\[(\d+)\]")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.([busf])(\d+)\b[^,)]*?(?:\[(\d+)\])?\s*[,)\n]")

# of CUfunction_attribute, and of CUdevice_attribute
_STATIC_BYTES, _MOST_DYNAMIC_BYTES = 1, 8
_MOST_SHARED_BYTES = 97


def refusal(kernel: Any, grid: Sequence[int], registers: int | None = None) -> str | None:
    """Why a driver would refuse this launch of what `triton.compile` returned; None where it wouldn't.

    `registers` of a thread, where they are known (`machine_code`).
    """
    metadata = kernel.metadata
    nvidia, architecture = metadata.target.backend == "cuda", _architecture(kernel)
    threads = metadata.num_warps * metadata.target.warp_size
    static = static_bytes(kernel)
    shared, most = metadata.shared + static, MOST_SHARED[architecture]
    if shared > most:
        return f"{shared} bytes of shared memory, {architecture} has {most} for a program"
    if static > UNASKED:
        return f"{static} bytes of static shared memory, at most {UNASKED} may be"
    if threads > MOST_THREADS:
        return f"{threads} threads, at most {MOST_THREADS} may be"
    for size, largest, axis in zip(grid, MOST_GRID, "xyz", strict=False):
        if size > largest:
            return f"a grid of {size} along {axis}, at most {largest} may be"
    if not nvidia:
        return None
    columns = metadata.tmem_size or 0
    if columns > MOST_TENSOR_MEMORY:
        return f"{columns} columns of tensor memory, at most {MOST_TENSOR_MEMORY} may be"
    if registers is not None:
        given = -(-registers // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE * threads
        if registers > MOST_REGISTERS or given > MOST_REGISTERS_OF_A_PROGRAM:
            return f"{registers} registers for each of {threads} threads"
    size = parameter_bytes(kernel)
    return None if size <= MOST_PARAMETER_BYTES else f"{size} bytes of arguments, at most {MOST_PARAMETER_BYTES} may be"


@functools.lru_cache(maxsize=1024)
def static_bytes(kernel: Any) -> int:
    """Static shared memory of a compiled kernel, in bytes; 0 on AMD, where no kernel has any."""
    end = 0
    for align, bits, count in _STATIC.findall(kernel.asm.get("ptx", "")):
        end = -(-end // int(align)) * int(align) + int(bits) // 8 * int(count)
    return end


@functools.lru_cache(maxsize=1024)
def parameter_bytes(kernel: Any) -> int:
    """Bytes of the arguments of a compiled NVIDIA kernel."""
    head = kernel.asm["ptx"].split(".entry", 1)[1].split("{", 1)[0]
    end = 0
    for align, _, bits, count in _PARAMETER.findall(head):
        size = int(bits) // 8
        end = -(-end // int(align or size)) * int(align or size) + size * int(count or 1)
    return end


def most_dynamic(static: int, most: int) -> int | None:
    """What the limit of dynamic shared memory is raised to for a kernel with `static` bytes of other shared memory
    where a program may have `most`; None: Triton's launcher decides.
    """
    return most - static if static else None


def most_dynamic_of(kernel: Any) -> int | None:
    """`most_dynamic` of a compiled NVIDIA kernel."""
    return most_dynamic(static_bytes(kernel), MOST_SHARED[_architecture(kernel)])


def _architecture(kernel: Any) -> str:
    target = kernel.metadata.target
    return f"sm_{target.arch}" if target.backend == "cuda" else target.arch


def raise_limits() -> None:
    """Lets kernels with static shared memory that Triton loads from now on have as much as the GPU gives."""
    if torch.version.hip is None:
        # adding what is there already does nothing
        triton.knobs.runtime.kernel_load_end_hook.add(_loaded)


def _loaded(_module: Any, function: int, name: str, _metadata: Any, _key: str) -> None:
    """What Triton calls with each kernel that it has loaded on the current device."""
    static, device, most = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    handle = ctypes.c_void_p(function)
    _call("cuFuncGetAttribute", ctypes.byref(static), _STATIC_BYTES, handle, of=name)
    _call("cuCtxGetDevice", ctypes.byref(device), of=name)
    _call("cuDeviceGetAttribute", ctypes.byref(most), _MOST_SHARED_BYTES, device, of=name)
    raised = most_dynamic(static.value, most.value)
    if raised is not None:
        _call("cuFuncSetAttribute", handle, _MOST_DYNAMIC_BYTES, raised, of=name)


def _call(function: str, *arguments: Any, of: str) -> None:
    code = getattr(_driver(), function)(*arguments)
    if code:
        raise RuntimeError(f"{of}: {function} failed with CUDA error {code}")


@functools.cache
def _driver() -> Any:
    """The driver's library, which Triton has loaded already."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
