"""Kernels compiled for a GPU that isn't there.

What is compiled is what a launch on that GPU would compile: the launcher's own arguments decide the specialisation
(pointers and sizes divisible by 16, sizes of 1, absent operands).
"""

from __future__ import annotations

import functools
from typing import Any

import triton

from ...compat.triton import GPUTarget, bound
from ...kernels.kernel_call import KernelCall
from ...kernels.launch_table import NVIDIA, machine_of

_compiled: dict[tuple[Any, ...], Any] = {}


@functools.cache
def gpu_target(architecture: str) -> GPUTarget:
    """Triton's target of "sm_90", "gfx942", …"""
    if machine_of(architecture) == NVIDIA:
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def compiled(call: KernelCall, architecture: str) -> tuple[Any, dict[str, Any]]:
    """The kernel that a launch compiles, and its arguments by name, without constants."""
    target = gpu_target(architecture)
    source, options, arguments, specialisation = bound(call.function, target, call.arguments)
    key = (call.function, target, *specialisation)
    kernel = _compiled.get(key)
    if kernel is None:
        kernel = _compiled[key] = triton.compile(source, target=target, options=options)
    return kernel, arguments
