"""Kernels compiled for a GPU that isn't there: launches are caught, compiled for a target and handed over.

What is compiled is what a launch on that GPU would compile: the launcher's own arguments decide the specialisation
(pointers and sizes divisible by 16, sizes of 1, absent operands).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from ...kernels.launch_table import NVIDIA, machine_of

# (compiled kernel, grid, arguments by name)
Handler = Callable[[Any, tuple[int, ...], dict[str, Any]], None]

_compiled: dict[tuple[Any, ...], Any] = {}


def gpu_target(architecture: str) -> GPUTarget:
    """Triton's target of "sm_90", "gfx942", …"""
    if machine_of(architecture) == NVIDIA:
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64)


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
