"""Before a kind of GPU is trusted: every path of every op compares itself there with eager PyTorch, once, by the ratio
rule, and the result is kept.

A path (`triton_gpu.call_paths`) that fails, or can't be compiled, is switched off: `selection` gives its calls to
eager, says so, and `explain` and `doctor` show why; other calls of the op aren't touched. The file is kept by GPU model
and by versions of lorafam, torch and triton.

What passes by itself (no memory left, no compiler, a CUDA graph being captured) is no failure: nothing is written down,
eager runs until a check could be made, and that is tried again.
"""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..reference.ratio_rule import MIN_ELEMENTS
from .comparison import check
from .self_check_cases import Case, Draw, cases
from .told import told
from .user_files import alone, keep, user_file

# what compiling all kernels takes on one core, and starting the processes that do it: measured on a CPU
COMPILING_SECONDS, STARTING_SECONDS = 160, 10
# after a trouble that may pass
AGAIN_SECONDS = 60.0
_PASSING = (torch.OutOfMemoryError, MemoryError, OSError)
_PASSING_TEXTS = ("out of memory", "C compiler", "non-zero exit status", "captur")
# after one of these the process can't use its GPU any more
_LOST_TEXTS = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "device-side assert",
    "launch fail",
)


class Verdict(NamedTuple):
    """Each path that is switched off → why; `unchecked`: why there is no verdict yet, and nothing is trusted."""

    failures: dict[str, str]
    unchecked: str | None = None


class KeptVerdicts(NamedTuple):
    """What a file says: failures, and whether the check came to its end."""

    failures: dict[str, str]
    complete: bool


class InterruptedCheckError(Exception):
    """A check that couldn't be made: the reason, what failed before, and whether the process lost its GPU."""

    def __init__(self, reason: str, found: dict[str, str], *, lost: bool) -> None:
        super().__init__(reason)
        self.found, self.lost = found, lost


_lock = threading.RLock()
# by the index of a device; of those that had trouble also when to try again
_verdicts: dict[int, Verdict] = {}
_troubles: dict[int, tuple[float, Verdict]] = {}


def verdict(device: torch.device) -> Verdict:
    """What is known of the kernels on `device`; the first time they are checked, unless a file has the result."""
    index = device.index or 0
    found = _verdicts.get(index)
    if found is not None:
        return found
    with _lock:
        return _verdicts.get(index) or _formed(index)


def forget() -> None:
    """Nothing is known in this process any more."""
    _verdicts.clear()
    _troubles.clear()


def _formed(index: int) -> Verdict:
    model = torch.cuda.get_device_name(index)
    path = result_file(model)
    kept = kept_result(path)
    if kept is not None and kept.complete:
        return _verdicts.setdefault(index, Verdict(kept.failures))
    # nothing is compiled or compared while a graph records
    if torch.cuda.is_current_stream_capturing():
        return Verdict({}, "a CUDA graph is being captured before the first call outside of one: warm up first")
    if index in _troubles and time.monotonic() < _troubles[index][0]:
        return _troubles[index][1]
    with alone(path):
        # another process may have checked meanwhile
        kept = kept_result(path) if path.is_file() else None
        if kept is None or not kept.complete:
            known = {} if kept is None else kept.failures
            try:
                kept = KeptVerdicts(_checked(index, model, known), complete=True)
            except InterruptedCheckError as interrupted:
                if interrupted.lost:
                    keep_result(path, KeptVerdicts(known | interrupted.found, complete=False))
                unchecked = Verdict({}, str(interrupted))
                _troubles[index] = time.monotonic() + AGAIN_SECONDS, unchecked
                return unchecked
            keep_result(path, kept)
    return _verdicts.setdefault(index, Verdict(kept.failures))


def _checked(index: int, model: str, known: dict[str, str]) -> dict[str, str]:
    from . import eager, triton_gpu
    from .triton_gpu.compile_ahead import compile_ahead

    device = torch.device("cuda", index)
    cores = len(os.sched_getaffinity(0))
    seconds = STARTING_SECONDS + COMPILING_SECONDS // cores
    warnings.warn(
        f"lorafam checks its kernels on {model}, once: about {seconds} s, of which most is compiling on {cores} cores",
        stacklevel=2,
    )
    compile_ahead(device, cores)
    try:
        # as ops run, whatever the call stands in that came first
        with torch.no_grad(), torch.autocast("cuda", enabled=False):
            return run_checks(triton_gpu, eager, device, known=known)
    finally:
        # calls of a path that failed must not be repeated
        triton_gpu.forget()


def keep_result(path: Path, kept: KeptVerdicts) -> None:
    """Writes what was found; warns where that can't be done."""
    try:
        keep(path, kept._asdict())
    except OSError as error:
        warnings.warn(f"the result can't be kept, so the next process checks again: {error}", stacklevel=2)


def kept_result(path: Path) -> KeptVerdicts | None:
    """What a file says; None where there is none, or, with a warning, nothing that can be understood."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _understood(found)
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is damaged, so lorafam checks again: {error}", stacklevel=2)
        return None


def _understood(kept: Any) -> KeptVerdicts:
    """Raises ValueError for what isn't a result."""
    if not isinstance(kept, dict) or kept.keys() != set(KeptVerdicts._fields) or not isinstance(kept["complete"], bool):
        raise ValueError("expected an object with failures and complete")
    failures = kept["failures"]
    if not isinstance(failures, dict) or not all(isinstance(why, str) for why in failures.values()):
        raise ValueError("failures: expected an object of reasons by path")
    return KeptVerdicts(**kept)


def result_file(model: str) -> Path:
    """Where the result is kept for a GPU model."""
    return user_file("checked-paths", model, ("lorafam", "torch", "triton"))


def run_checks(
    kernels: ModuleType,
    eager: ModuleType,
    device: torch.device,
    *,
    known: dict[str, str] | None = None,
    which: Iterable[Case] | None = None,
    least: int = MIN_ELEMENTS,
) -> dict[str, str]:
    """Each path whose implementation in `kernels` fails → why; paths agree with `eager` on the same arguments.

    Paths that are `known` to fail aren't tried. Results are pooled to `least` elements. Raises InterruptedCheckError
    where no check can be made.
    """
    from .triton_gpu.call_paths import paths_of

    failures = dict(known or {})
    draws: list[Draw] = []

    def draw(number: int) -> Draw:
        while number >= len(draws):
            draws.append(Draw(len(draws), eager, device))
        return draws[number]

    for case in cases() if which is None else which:
        paths: tuple[str, ...] = (case.op,)
        try:
            paths = paths_of(case.op, case.make(draw(0)))
            if not any(path in failures for path in paths):
                check(case, getattr(kernels, case.op), getattr(eager, case.op), draw, least)
        except Exception as error:  # whatever a compiler or a launch raises switches the path off
            why = f"{case.what}: {told(error)}"
            lost = any(text in str(error) for text in _LOST_TEXTS)
            if not lost and (isinstance(error, _PASSING) or any(text in str(error) for text in _PASSING_TEXTS)):
                raise InterruptedCheckError(f"{case.op}, {why}", failures, lost=False) from error
            failures[paths[0]] = why
            if lost:
                raise InterruptedCheckError(
                    f"{paths[0]}, {why}; start the process again", failures, lost=True
                ) from error
    return failures
