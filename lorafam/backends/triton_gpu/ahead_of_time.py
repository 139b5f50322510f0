"""Kernels compiled for a GPU that isn't there.

What is compiled is what a launch on that GPU would compile: the launcher's own arguments decide the specialisation
(pointers and sizes divisible by 16, sizes of 1, absent operands).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import triton

from ...compat.triton import ASTSource, GPUTarget, bound
from ...kernels.kernel_call import KernelCall
from ...kernels.launch_table import NVIDIA, machine_of

_compiled: dict[tuple[Any, ...], Any] = {}


class Source(NamedTuple):
    """What `triton.compile` takes."""

    source: ASTSource
    target: GPUTarget
    options: dict[str, Any]


# where kernels are only noted, innermost last
_noted: list[dict[tuple[Any, ...], Source]] = []


@contextlib.contextmanager
def noted() -> Iterator[dict[tuple[Any, ...], Source]]:
    """What launches would compile meanwhile; nothing is compiled, their kernels are None."""
    found: dict[tuple[Any, ...], Source] = {}
    _noted.append(found)
    try:
        yield found
    finally:
        _noted.pop()


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
    if _noted:
        _noted[-1][key] = Source(source, target, options)
        return None, arguments
    kernel = _compiled.get(key)
    if kernel is None:
        kernel = _compiled[key] = triton.compile(source, target=target, options=options)
    return kernel, arguments
