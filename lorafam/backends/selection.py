"""Which backend runs an op, and why.

`LORAFAM_BACKEND=triton|numba|eager|simulate|interpret` forces one; one that can't run raises with the cause. Otherwise
GPU tensors go to Triton, CPU tensors to Numba. `simulate` and `interpret` run the Triton backend on CPU tensors, to
check it. Where eager runs without having been asked for, a `SlowPathWarning` says so once, with the reason, and
`report` and `explain` tell it.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..compat.torch import constant_in_graphs
from ..ops.library import LIBRARY, OPS, Op
from .told import told

if TYPE_CHECKING:
    from .self_check import Verdict

VARIABLE = "LORAFAM_BACKEND"
_TRITON = "lorafam.backends.triton_gpu"
_MODULES = {
    "triton": _TRITON,
    "numba": "lorafam.backends.numba_cpu",
    "eager": "lorafam.backends.eager",
    "simulate": _TRITON,
    "interpret": _TRITON,
}
# how the Triton backend, once it is loaded, makes a call like an earlier one
_PREPARED: list[Callable[..., Any]] = []
_TOLD: set[str] = set()
_ON_CPU = ("numba", "simulate", "interpret")
# the first with bf16 on tensor cores
_LEAST_CAPABILITY = (8, 0)


class SlowPathWarning(UserWarning):
    """A slower path is taken; the message says which and why."""


class DetourWarning(UserWarning):
    """A call takes a slower way than usual, since what is asked for needs it; the message says which and why."""


class Choice(NamedTuple):
    """A backend and the reason it was chosen."""

    backend: str
    reason: str
    asked_for: bool


_NO_DOUBLE = Choice("eager", "the GPU kernels take no fp64", False)


class ReportRow(NamedTuple):
    """One line of `lorafam doctor`: the op, the device type, the backend that runs it and why."""

    op: str
    device: str
    backend: str
    reason: str


@functools.cache
def _numba_failure() -> str | None:
    """Why the Numba backend can't be imported, or None."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba can't be imported: {error}"
    try:
        _implementations("numba")
    except (ImportError, OSError, AttributeError) as error:
        # what the system, or this Numba, lacks
        return f"the CPU kernels can't be loaded: {told(error)}"
    return None


@functools.cache
def _triton_failure(device_type: str) -> str | None:
    """Why the Triton backend can't run on the GPUs of `device_type`, or None."""
    if device_type != "cuda":
        return f"there are no kernels for {device_type} tensors"
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"triton can't be imported: {error}"
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    if torch.version.hip is None:
        have = torch.cuda.get_device_capability()
        if have < _LEAST_CAPABILITY:
            return f"the GPU has compute capability {have[0]}.{have[1]}, the kernels need 8.0"
    from ..compat.triton import missing_to_launch

    return missing_to_launch()


def choose(device_type: str, paths: Sequence[str] = ()) -> Choice:
    """The backend for tensors on `device_type`; for a call on these paths (`triton_gpu.call_paths`), if they are given.

    Raises ValueError for an unknown LORAFAM_BACKEND, RuntimeError when the one asked for can't run.
    """
    choice = _choose(device_type, os.environ.get(VARIABLE, ""))
    return _unless_switched_off(choice, _verdict(), paths) if paths and choice.backend == "triton" else choice


@functools.cache
def _choose(device_type: str, wanted: str) -> Choice:
    if wanted and wanted not in _MODULES:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(_MODULES)}, got {wanted!r}")
    if wanted == "eager":
        return Choice("eager", f"{VARIABLE}=eager", True)
    on_cpu = device_type == "cpu"
    if wanted and on_cpu != (wanted in _ON_CPU):
        where = "the CPU" if wanted in _ON_CPU else "a GPU"
        raise RuntimeError(f"{VARIABLE}={wanted}: it runs on {where}, the tensors are on {device_type}")
    default = "numba" if on_cpu else "triton"
    if wanted in ("simulate", "interpret"):
        if wanted == "interpret":
            from ..compat.triton import missing_to_interpret

            if (missing := missing_to_interpret()) is not None:
                raise RuntimeError(f"{VARIABLE}=interpret: {missing}")
        return Choice(wanted, f"{VARIABLE}={wanted}", True)
    failure = _numba_failure() if on_cpu else _triton_failure(device_type)
    if failure is None:
        return Choice(default, f"{VARIABLE}={wanted}" if wanted else f"{device_type.upper()} tensors", bool(wanted))
    if wanted:
        raise RuntimeError(f"{VARIABLE}={wanted}: {failure}")
    return Choice("eager", failure, False)


def _verdict() -> Verdict:
    from . import self_check

    return self_check.verdict(torch.device("cuda", torch.cuda.current_device()))


def _unless_switched_off(choice: Choice, verdict: Verdict, paths: Sequence[str]) -> Choice:
    """Eager where the GPU's self-check switched one of the paths off, or couldn't be made yet."""
    if verdict.unchecked is not None:
        return Choice("eager", f"the kernels aren't checked on this GPU yet: {verdict.unchecked}", False)
    for path in paths:
        if path in verdict.failures:
            return Choice("eager", f"{path}: failed its check on this GPU: {verdict.failures[path]}", False)
    return choice


@functools.cache
def _cpu_check() -> ModuleType:
    return importlib.import_module("lorafam.backends.numba_cpu.self_check")


def _unless(why: str | None, choice: Choice, op: str) -> Choice:
    """Eager where the CPU kernels' check of such a call failed, and why."""
    return choice if why is None else Choice("eager", f"{op}: failed its check on this processor: {why}", False)


def unless_it_fails(choice: Choice, op: str, dtype: torch.dtype, four_bit: bool) -> Choice:
    """The same of an op's calls in `dtype`, over a weight in 4 bits or a dense one, where `choice` is Numba."""
    return _unless(_cpu_check().failure_of(op, dtype, four_bit), choice, op)


def _has_double(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dtype == torch.float64
    return isinstance(value, list | tuple) and any(map(_has_double, value))


@functools.cache
def _announce(choice: Choice) -> None:
    if choice.backend == "eager" and not choice.asked_for:
        warnings.warn(f"lorafam runs in eager PyTorch, slowly: {choice.reason}", SlowPathWarning, stacklevel=2)


@constant_in_graphs
def tell_of_detour(message: str) -> bool:
    """Warns once a process; while a graph is compiled too, which has nothing of it."""
    if message not in _TOLD:
        _TOLD.add(message)
        warnings.warn(message, DetourWarning, stacklevel=3)
    return True


@functools.cache
def _implementations(backend: str) -> ModuleType:
    return importlib.import_module(_MODULES[backend])


def run(op: Op, device_type: str, *args: Any) -> Any:
    """Checks the arguments and runs the op on the chosen backend, with gradients and autocast off: an op records
    nothing and chooses its own dtypes.
    """
    prepared = preparing(device_type)
    if prepared is None:
        return _checked(op, device_type, *args)
    # a call like an earlier one was checked then
    return prepared(op.name, functools.partial(_checked, op, device_type), *args)


def preparing(device_type: str) -> Callable[..., Any] | None:
    """What makes calls like earlier ones (`triton_gpu.prepared`), where Triton runs the ops."""
    return _PREPARED[0] if _PREPARED and _runs_triton(device_type) else None


def _checked(op: Op, device_type: str, *args: Any) -> Any:
    op.check(*args)
    choice = _choose_for(op.name, device_type, args)
    if _MODULES[choice.backend] == _TRITON and any(map(_has_double, args)):
        choice = _NO_DOUBLE
    _announce(choice)
    implementation = getattr(_implementations(choice.backend), op.name)
    if torch.is_grad_enabled() or torch.is_autocast_enabled(device_type):
        with torch.no_grad(), torch.autocast(device_type, enabled=False):
            return implementation(*args)
    return implementation(*args)


def kernels_of_a_direction() -> ModuleType | None:
    """What runs several ops over CPU tensors at once (`numba_cpu.together`); None where another backend runs them."""
    return _kernels_of_a_direction(os.environ.get(VARIABLE, ""))


@functools.cache
def _kernels_of_a_direction(wanted: str) -> ModuleType | None:
    chosen = _choose("cpu", wanted).backend == "numba"
    return importlib.import_module("lorafam.backends.numba_cpu.together") if chosen else None


def _choose_for(op: str, device_type: str, args: Sequence[Any]) -> Choice:
    choice = _choose(device_type, os.environ.get(VARIABLE, ""))
    if choice.backend == "numba":
        return _unless(_cpu_check().failure(op, args), choice, op)
    if choice.backend != "triton":
        return choice
    verdict = _verdict()
    if not verdict.failures:
        return _unless_switched_off(choice, verdict, ())
    from .triton_gpu.call_paths import paths_of

    return _unless_switched_off(choice, verdict, paths_of(op, args))


def is_settled(device_type: str) -> bool:
    """Whether it is known which paths run there; a GPU is checked first, if it wasn't. False where that can't be done
    now: it will be tried again.
    """
    choice = _choose(device_type, os.environ.get(VARIABLE, ""))
    return choice.backend != "triton" or _verdict().unchecked is None


def prepare_by(prepared: Callable[..., Any]) -> None:
    """Has the Triton backend's calls made by `prepared` (`triton_gpu.prepared`), before anything else is asked."""
    _PREPARED[:] = [prepared]


def _runs_triton(device_type: str) -> bool:
    wanted = os.environ.get(VARIABLE, "")
    return wanted in ("", "triton") if device_type == "cuda" else wanted == "simulate"


def report() -> list[ReportRow]:
    """Every op on every device type present, with its backend and the reason; below it each of its paths that is
    switched off.
    """
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    on_numba = _choose("cpu", os.environ.get(VARIABLE, "")).backend == "numba"
    failed = _cpu_check().failures() if on_numba else {}
    return [row for device in devices for name in sorted(OPS) for row in _rows(name, device, failed.get(name, {}))]


def _rows(op: str, device: str, failed: Mapping[str, str]) -> list[ReportRow]:
    """`failed`: the op's kinds of calls that fail their check on this processor → why."""
    choice = _choose(device, os.environ.get(VARIABLE, ""))
    if choice.backend == "numba":
        wrong = [ReportRow(kind, device, *_unless(why, choice, op)[:2]) for kind, why in failed.items()]
        return [ReportRow(op, device, *choice[:2]), *wrong]
    if choice.backend != "triton":
        return [ReportRow(op, device, *choice[:2])]
    verdict = _verdict()
    off = [path for path in verdict.failures if path.startswith(f"{op}, ")]
    rows = [ReportRow(op, device, *_unless_switched_off(choice, verdict, (op,))[:2])]
    return rows + [ReportRow(path, device, *_unless_switched_off(choice, verdict, (path,))[:2]) for path in off]


def register() -> None:
    """Registers one implementation per op and device type with torch's dispatcher."""
    for op in OPS.values():
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(op.name, functools.partial(run, op, key.lower()), key)
