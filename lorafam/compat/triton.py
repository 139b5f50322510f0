"""Triton beside its documented interface. All of it was seen alike in 3.6.0, 3.7.1, 3.8.0 and 3.9.0, where nothing else
is said.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import create_function_from_signature
from triton.tools.tensor_descriptor import TensorDescriptor

__all__ = [
    "ASTSource",
    "Bound",
    "GPUTarget",
    "bound",
    "descriptors_round",
    "launcher",
    "missing_to_interpret",
    "missing_to_launch",
    "with_rounding",
]

# up to here a launcher is compiled for every kernel; later ones compile a single launcher
_LAST_WITH_A_LAUNCHER_EACH = (3, 6)


class Bound(NamedTuple):
    """A kernel's arguments as its compiler sees them: what to compile, and the arguments without constants.

    `key` is equal where the compiled kernels would be.
    """

    source: ASTSource
    options: dict[str, Any]
    arguments: dict[str, Any]
    key: tuple[str, str]


def bound(function: Any, target: GPUTarget, arguments: dict[str, Any]) -> Bound:
    """What `JITFunction.run` makes of arguments and options before it compiles, for a GPU that need not be there."""
    backend = make_backend(target)
    arguments = {"debug": function.debug, **arguments}
    binder = create_function_from_signature(function.signature, function.params, backend)
    values, specialization, extra = binder(**arguments)
    options, signature, constexprs, attributes = function._pack_args(backend, arguments, values, specialization, extra)
    key = (str(specialization), str(sorted(options.__dict__.items(), key=str)))
    own = {name: value for name, value in values.items() if signature[name] != "constexpr"}
    return Bound(ASTSource(function, signature, constexprs, attributes), options.__dict__, own, key)


def launcher(kernel: Any, grid: tuple[int, ...]) -> Callable[[list[Any]], None]:
    """Launches a compiled kernel on the current device's current stream, with all arguments in the kernel's order:
    what `JITFunction.run` does with a kernel that it has found. Of the device that is current now.
    """
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


def descriptors_round() -> bool:
    """Whether a tensor descriptor says whether fp32 is rounded to tf32, and a kernel takes it: since 3.7."""
    return "round_f32_to_tf32" in TensorDescriptor.__dataclass_fields__


def with_rounding(argument: Any) -> Any:
    """A kernel's argument; a tensor descriptor says that fp32 isn't rounded to tf32, which 3.6's doesn't say."""
    if isinstance(argument, TensorDescriptor) and not descriptors_round():
        argument.round_f32_to_tf32 = False
    return argument


def missing_to_launch() -> str | None:
    """What Triton lacks here to build its launcher, which is C and compiled on the user's machine; None where nothing
    is missing, or the launcher lies in Triton's cache.
    """
    if triton.knobs.build.impl is not None:
        return None
    missing = [what for what in (_missing_compiler(), _missing_headers()) if what is not None]
    if not missing:
        return None
    if _version() > _LAST_WITH_A_LAUNCHER_EACH:
        try:
            _ = triton.runtime.driver.active.utils
        except Exception:  # whatever the build raises: what it lacks is told in its place
            return _told(missing)
        return None
    return _told(missing)


def missing_to_interpret() -> str | None:
    """What keeps Triton's interpreter from running; None where nothing does."""
    numpy_version = tuple(int(part) for part in numpy.__version__.split(".")[:2])
    if _version() < (3, 7) and numpy_version >= (2, 4):
        return f"the interpreter of triton {triton.__version__} needs numpy before 2.4"
    return None


def _told(missing: list[str]) -> str:
    return f"triton {triton.__version__} compiles its launcher in C, and {' and '.join(missing)}"


def _missing_compiler() -> str | None:
    compiler = os.environ.get("CC")
    if compiler is None:
        return None if shutil.which("gcc") or shutil.which("clang") else "finds no gcc or clang (install one or set CC)"
    return None if shutil.which(compiler) else f"finds no {compiler}, which CC names"


def _missing_headers() -> str | None:
    scheme = sysconfig.get_default_scheme()
    # as Triton looks for them: Debian's scheme of its own has none
    folder = sysconfig.get_paths("posix_prefix" if scheme == "posix_local" else scheme)["include"]
    searched = [folder, *os.environ.get("CPATH", "").split(":"), *os.environ.get("C_INCLUDE_PATH", "").split(":")]
    if any((Path(place) / "Python.h").is_file() for place in searched if place):
        return None
    version = sysconfig.get_python_version()
    return f"finds no Python.h in {folder} (install python{version}-dev or python{version}-devel)"


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:2])
