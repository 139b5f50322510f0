"""Kernels compiled for a GPU that isn't there: launches are caught, compiled for a target and handed over.

What is compiled is what a launch on that GPU would compile: the launcher's own arguments decide the specialisation
(pointers and sizes divisible by 16, sizes of 1, absent operands).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ...kernels.launch_table import NVIDIA, machine_of
from .replay import Start, Started

# (compiled kernel, grid, arguments by name)
Handler = Callable[[Any, tuple[int, ...], dict[str, Any]], None]

_compiled: dict[tuple[Any, ...], Any] = {}


def gpu_target(architecture: str) -> GPUTarget:
    """Triton's target of "sm_90", "gfx942", …"""
    if machine_of(architecture) == NVIDIA:
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


def watched(start: Callable[[], None]) -> Started:
    """Makes the one launch that `start` makes on the GPU, and tells how to make it again."""
    found: list[Started] = []
    thread = threading.get_ident()
    saved = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kernel = saved(self, *args, grid=grid, warmup=warmup, **kwargs)
        if threading.get_ident() == thread:
            arguments = {parameter.name: kwargs[parameter.name] for parameter in self.params}
            found.append(Started(_again(kernel, tuple(grid)), arguments))
        return kernel

    JITFunction.run = run
    try:
        start()
    finally:
        JITFunction.run = saved
    return found[-1]


def _again(kernel: Any, grid: tuple[int, ...]) -> Start:
    """What `JITFunction.run` does with a kernel that it has found."""
    driver = triton.runtime.driver.active
    device = driver.get_current_device()
    x, y, z = (*grid, 1, 1)[:3]
    run, function, packed = kernel.run, kernel.function, kernel.packed_metadata
    hooks = triton.knobs.runtime

    def start(arguments: list[Any]) -> None:
        stream = driver.get_current_stream(device)
        metadata = kernel.launch_metadata((x, y, z), stream, *arguments)
        enter, leave = hooks.launch_enter_hook, hooks.launch_exit_hook
        run(x, y, z, stream, function, packed, metadata, enter, leave, *arguments)

    return start


@contextlib.contextmanager
def caught(architecture: str, handler: Handler) -> Iterator[None]:
    """Launches meanwhile, in any thread, are compiled for `architecture` and given to `handler`."""
    target = gpu_target(architecture)
    backend = make_backend(target)

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        kwargs["debug"] = kwargs.get("debug", self.debug)
        binder = create_function_from_signature(self.signature, self.params, backend)
        bound, specialization, extra = binder(*args, **kwargs)
        options, signature, constexprs, attributes = self._pack_args(backend, kwargs, bound, specialization, extra)
        key = (self, target, str(specialization), str(sorted(options.__dict__.items(), key=str)))
        kernel = _compiled.get(key)
        if kernel is None:
            source = ASTSource(self, signature, constexprs, attributes)
            kernel = _compiled[key] = triton.compile(source, target=target, options=options.__dict__)
        if not warmup:
            sizes = grid(bound) if callable(grid) else grid
            handler(kernel, tuple(sizes), {name: v for name, v in bound.items() if signature[name] != "constexpr"})
        return kernel

    saved = JITFunction.run
    JITFunction.run = run
    try:
        yield
    finally:
        JITFunction.run = saved
