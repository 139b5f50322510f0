"""Which backend runs an op, and why.

`LORAFAM_BACKEND=numba|eager` forces one; one that can't run raises with the cause. Otherwise CPU tensors go to Numba.
Where eager runs without having been asked for, a `SlowPathWarning` says so once, with the reason, and `report` and
`explain` tell it.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..ops.library import LIBRARY, OPS, Op

VARIABLE = "LORAFAM_BACKEND"
_MODULES = {"numba": "lorafam.backends.numba_cpu", "eager": "lorafam.backends.eager"}


class SlowPathWarning(UserWarning):
    """A slower path is taken; the message says which and why."""


class Choice(NamedTuple):
    """A backend and the reason it was chosen."""

    backend: str
    reason: str
    asked_for: bool


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
    return None


def choose(device_type: str) -> Choice:
    """The backend for tensors on `device_type`.

    Raises ValueError for an unknown LORAFAM_BACKEND, RuntimeError when the one asked for can't run.
    """
    return _choose(device_type, os.environ.get(VARIABLE, ""))


@functools.cache
def _choose(device_type: str, wanted: str) -> Choice:
    if wanted and wanted not in _MODULES:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(_MODULES)}, got {wanted!r}")
    if wanted == "eager":
        return Choice("eager", f"{VARIABLE}=eager", True)
    if device_type != "cpu":
        if wanted == "numba":
            raise RuntimeError(f"{VARIABLE}=numba: the Numba backend runs on the CPU, the tensors are on {device_type}")
        return Choice("eager", f"this version has no kernels for {device_type} tensors", False)
    failure = _numba_failure()
    if failure is None:
        return Choice("numba", f"{VARIABLE}=numba" if wanted else "CPU tensors", bool(wanted))
    if wanted == "numba":
        raise RuntimeError(f"{VARIABLE}=numba: {failure}")
    return Choice("eager", failure, False)


@functools.cache
def _announce(choice: Choice) -> None:
    if choice.backend == "eager" and not choice.asked_for:
        warnings.warn(f"lorafam runs in eager PyTorch, slowly: {choice.reason}", SlowPathWarning, stacklevel=2)


@functools.cache
def _implementations(backend: str) -> ModuleType:
    return importlib.import_module(_MODULES[backend])


def run(op: Op, device_type: str, *args: Any) -> Any:
    """Checks the arguments and runs the op on the chosen backend, with autocast off: an op chooses its own dtypes."""
    op.check(*args)
    choice = choose(device_type)
    _announce(choice)
    implementation = getattr(_implementations(choice.backend), op.name)
    if torch.is_autocast_enabled(device_type):
        with torch.autocast(device_type, enabled=False):
            return implementation(*args)
    return implementation(*args)


def report() -> list[ReportRow]:
    """Every op on every device type present, with its backend and the reason."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return [ReportRow(name, device, *choose(device)[:2]) for device in devices for name in sorted(OPS)]


def register() -> None:
    """Registers one implementation per op and device type with torch's dispatcher."""
    for op in OPS.values():
        for key in ("CPU", "CUDA"):
            LIBRARY.impl(op.name, functools.partial(run, op, key.lower()), key)
