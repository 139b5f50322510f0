"""How a kernel gets to run: on a GPU, as compiled code in ptxsim, or in Triton's interpreter.

CUDA tensors run on their GPU. CPU tensors are taken under `LORAFAM_BACKEND=simulate` (compiled for LORAFAM_SIMULATE,
sm_80 unless set, and run by ptxsim, which `LORAFAM_PTXSIM` locates) and `LORAFAM_BACKEND=interpret`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ...compat.torch import without_modes
from ...kernels.kernel_call import KernelCall
from . import user_table
from .prepared import forget, tell
from .prepared_call import Started

INTERPRETING = os.environ.get("LORAFAM_BACKEND") == "interpret"
if INTERPRETING and os.environ.get("TRITON_INTERPRET") != "1":
    # read when a function is decorated, Triton's own included
    if "triton" in sys.modules:
        raise RuntimeError("LORAFAM_BACKEND=interpret: triton is imported already; set TRITON_INTERPRET=1 before that")
    os.environ["TRITON_INTERPRET"] = "1"

SIMULATED_ARCHITECTURE = "LORAFAM_SIMULATE"
PTXSIM = "LORAFAM_PTXSIM"


# of the programs that ptxsim runs side by side: it takes about as long for few threads as for many
_SIMULATED_THREADS = 8192


class Launch(NamedTuple):
    """One launch that didn't go to a GPU: the compiled kernel, its grid, arguments, outputs and ptxsim's result."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    outputs: tuple[str, ...]
    result: Any

    @property
    def name(self) -> str:
        return self.kernel.src.fn.__name__


# the architectures that launches on CPU tensors are compiled for without running, innermost last, and who is told
_compile_only: list[tuple[str, list[Launch]]] = []
_recorders: list[list[Launch]] = []


@contextlib.contextmanager
def recorded() -> Iterator[list[Launch]]:
    """The launches that ptxsim runs meanwhile."""
    launches: list[Launch] = []
    _recorders.append(launches)
    try:
        yield launches
    finally:
        _recorders.remove(launches)


@contextlib.contextmanager
def compiled_only(architecture: str) -> Iterator[list[Launch]]:
    """Launches on CPU tensors are configured and compiled for `architecture`, and don't run."""
    launches: list[Launch] = []
    _compile_only.append((architecture, launches))
    try:
        yield launches
    finally:
        _compile_only.pop()


def architecture(device: torch.device) -> str:
    """What kernels for tensors on `device` are configured for: "sm_90", "gfx942", "interpreter"."""
    if device.type == "cpu":
        if _compile_only:
            return _compile_only[-1][0]
        return "interpreter" if INTERPRETING else os.environ.get(SIMULATED_ARCHITECTURE, "sm_80")
    return _gpu_architecture(device.index if device.index is not None else torch.cuda.current_device())


def only_compiles() -> bool:
    """Whether launches on CPU tensors don't run now."""
    return bool(_compile_only)


@functools.cache
def _gpu_architecture(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    found = properties.gcnArchName.split(":")[0] if torch.version.hip else f"sm_{properties.major}{properties.minor}"
    # every launch asks for the architecture first, and it is found out once
    user_table.use(properties.name, found)
    return found


def launch(
    device: torch.device, outputs: tuple[str, ...], launcher: Callable[..., KernelCall], **arguments: Any
) -> Started | None:
    """Makes the launch that a kernel's launcher gives; how to make it again, None where that isn't known.

    `outputs` are the kernel's parameters that it writes whole and reads not before.
    """
    try:
        with without_modes():
            started = _launched(device, outputs, launcher(**arguments))
    except BaseException:
        # it may leave arrivals counted
        forget()
        raise
    tell(started)
    return started


def _launched(device: torch.device, outputs: tuple[str, ...], call: KernelCall) -> Started | None:
    if device.type == "cuda":
        with _on(device):
            return _on_gpu(call)
    if _compile_only or not INTERPRETING:
        return _without_gpu(call, outputs)
    call()
    return None


def _on_gpu(call: KernelCall) -> Started | None:
    from ...compat import triton

    kernel = call()
    # a hook of Triton's may have declined the launch
    return None if kernel is None else Started(triton.launcher(kernel, call.grid), call.own())


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Where a kernel that is launched, and may have to be loaded for it, finds its device and what memory it needs."""
    from .launch_limits import raise_limits

    raise_limits()
    if torch.cuda.current_device() == device.index:
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def _without_gpu(call: KernelCall, outputs: tuple[str, ...]) -> Started:
    from .ahead_of_time import compiled

    kernel, arguments = compiled(call, architecture(torch.device("cpu")))
    run = functools.partial(_run_without_gpu, kernel, call.grid, outputs, tuple(arguments))
    run(list(arguments.values()))
    return Started(run, arguments)


def _run_without_gpu(
    kernel: Any, grid: tuple[int, ...], outputs: tuple[str, ...], names: tuple[str, ...], values: list[Any]
) -> None:
    from ...compat.triton import with_rounding
    from .launch_limits import most_dynamic_of, refusal

    arguments = dict(zip(names, values, strict=True))
    if _compile_only:
        _compile_only[-1][1].append(Launch(kernel, grid, arguments, outputs, None))
        return
    refused = refusal(kernel, grid)
    if refused is not None:
        raise RuntimeError(f"{kernel.src.fn.__name__}: a driver refuses this launch: {refused}")
    most = most_dynamic_of(kernel)
    whole = {name: with_rounding(value) for name, value in arguments.items()}
    beside = max(1, min(math.prod(grid), _SIMULATED_THREADS // (32 * kernel.metadata.num_warps)))
    result = simulator().run(_for_ptxsim(kernel), grid, uninit=outputs, max_dynamic_shared=most, ctas=beside, **whole)
    missing = {name: count for name, count in result.unwritten.items() if count}
    if missing:
        raise RuntimeError(f"{kernel.src.fn.__name__}: bytes never written, by parameter: {missing}")
    for recorder in _recorders:
        recorder.append(Launch(kernel, grid, arguments, outputs, result))


def _for_ptxsim(kernel: Any) -> Any:
    """The kernel, in instructions and with parameters that ptxsim knows."""
    from ...compat.triton import descriptors_round
    from .descriptor_flags import with_both
    from .mixed_precision import written_out

    ptx = written_out(kernel.asm["ptx"])
    if not descriptors_round() and any(str(kind).startswith("tensordesc") for kind in kernel.src.signature.values()):
        ptx = with_both(ptx)
    if ptx == kernel.asm["ptx"]:
        return kernel
    plain = copy.copy(kernel)
    plain.asm = {**kernel.asm, "ptx": ptx}
    return plain


@functools.cache
def simulator() -> Any:
    """The module ptxsim. Raises RuntimeError when LORAFAM_PTXSIM doesn't lead to it."""
    folder = os.environ.get(PTXSIM)
    if folder and folder not in sys.path:
        sys.path.append(folder)
    try:
        return importlib.import_module("ptxsim")
    except ImportError as error:
        message = f"LORAFAM_BACKEND=simulate: {PTXSIM} must name the folder that holds ptxsim: {error}"
        raise RuntimeError(message) from None
