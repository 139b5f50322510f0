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
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..ops.by_storage import Storage, is_dense
from ..reference.ratio_rule import MIN_ELEMENTS, assert_as_good_as_eager
from .eager import dequantize_4bit
from .self_check_cases import Arguments, Case, Draw, cases
from .told import told
from .user_files import alone, keep, user_file

Tensor = torch.Tensor

# On a card never seen eager isn't what the limits were set against: cuBLAS chooses another kernel for each card, whose
# order of summation may err less. A wrong index, scale or mask errs by orders more; a false alarm costs a fast path.
NEVER_SEEN = 4 / 3
# what compiling all kernels takes on one core, and starting the processes that do it: measured on a CPU
COMPILING_SECONDS, STARTING_SECONDS = 160, 10
# after a trouble that may pass
AGAIN_SECONDS = 60.0
_SAME_BITS = ("dequantize_4bit", "quantize_4bit", "quantize_absmax")
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


class Kept(NamedTuple):
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
                kept = Kept(_checked(index, model, known), complete=True)
            except InterruptedCheckError as interrupted:
                if interrupted.lost:
                    keep_result(path, Kept(known | interrupted.found, complete=False))
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


def keep_result(path: Path, kept: Kept) -> None:
    """Writes what was found; warns where that can't be done."""
    try:
        keep(path, kept._asdict())
    except OSError as error:
        warnings.warn(f"the result can't be kept, so the next process checks again: {error}", stacklevel=2)


def kept_result(path: Path) -> Kept | None:
    """What a file says; None where there is none, or, with a warning, nothing that can be understood."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return _understood(found)
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is damaged, so lorafam checks again: {error}", stacklevel=2)
        return None


def _understood(found: Any) -> Kept:
    """Raises ValueError for what isn't a result."""
    if not isinstance(found, dict) or found.keys() != set(Kept._fields) or not isinstance(found["complete"], bool):
        raise ValueError("expected an object with failures and complete")
    failures = found["failures"]
    if not isinstance(failures, dict) or not all(isinstance(why, str) for why in failures.values()):
        raise ValueError("failures: expected an object of reasons by path")
    return Kept(**found)


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

    found = dict(known or {})
    draws: list[Draw] = []

    def draw(number: int) -> Draw:
        while number >= len(draws):
            draws.append(Draw(len(draws), eager, device))
        return draws[number]

    for case in cases() if which is None else which:
        paths: tuple[str, ...] = (case.op,)
        try:
            paths = paths_of(case.op, case.make(draw(0)))
            if not any(path in found for path in paths):
                check(case, getattr(kernels, case.op), getattr(eager, case.op), draw, least)
        except Exception as error:  # whatever a compiler or a launch raises switches the path off
            why = f"{case.what}: {told(error)}"
            lost = any(text in str(error) for text in _LOST_TEXTS)
            if not lost and (isinstance(error, _PASSING) or any(text in str(error) for text in _PASSING_TEXTS)):
                raise InterruptedCheckError(f"{case.op}, {why}", found, lost=False) from error
            found[paths[0]] = why
            if lost:
                raise InterruptedCheckError(f"{paths[0]}, {why}; start the process again", found, lost=True) from error
    return found


def check(
    case: Case, run: Callable[..., Any], eager: Callable[..., Any], draw: Callable[[int], Draw], least: int
) -> None:
    """Raises AssertionError unless `run` is as good as eager's, over as many draws as give `least` elements."""
    got: list[list[Tensor]] = []
    wanted: list[Expected] = []
    number = 0
    while number == 0 or (case.op not in _SAME_BITS and number < _draws(wanted[0].eager, least)):
        arguments = case.make(draw(number))
        got.append(results_of(case.op, run, arguments))
        wanted.append(expected(case.op, eager, arguments))
        number += 1
    _compare(case.op, got, wanted, least)


def _draws(results: list[Tensor], least: int) -> int:
    smallest = min((result.numel() for result in results if result.numel()), default=least)
    return math.ceil(least / smallest)


class Expected(NamedTuple):
    """What an op shall give: eager's results, and the same in fp64."""

    eager: list[Tensor]
    exact: list[Tensor]


def expected(op: str, eager: Callable[..., Any], arguments: Arguments) -> Expected:
    """Runs eager PyTorch on copies of the arguments, as they are and in fp64."""
    results = results_of(op, eager, arguments)
    if op in _SAME_BITS:
        return Expected(results, results)
    if op in ("row_norm", "squared_row_norm"):
        # no operand of theirs tells eager to decode in fp64
        arguments = (*_decoded(*arguments[:3]), *arguments[3:])
    return Expected(results, results_of(op, eager, arguments, wide=True))


def _decoded(data: Tensor, scales: list[Tensor], layout: list[int]) -> Storage:
    return Storage(data if is_dense(layout) else dequantize_4bit(data, scales, layout, torch.float64), [], [])


def results_of(op: str, run: Callable[..., Any], arguments: Arguments, *, wide: bool = False) -> list[Tensor]:
    """Every tensor that an op gives or changes; it gets copies, with `wide` in fp64."""
    copies = _copied(arguments, wide=wide)
    given = _tensors(run(*copies))
    return _tensors(copies[2:4]) if op == "adalora_importance" else given


def compare(op: str, got: list[Tensor], wanted: Expected) -> None:
    """Raises AssertionError unless the results of a call are as good as eager's, however few they are."""
    _compare(op, [got], [wanted], 1)


def _compare(op: str, got: list[list[Tensor]], wanted: list[Expected], least: int) -> None:
    """The same of several draws, pooled."""
    for index, ours in enumerate(zip(*got, strict=True)):
        eager = [one.eager[index] for one in wanted]
        if op in _SAME_BITS:
            same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(ours, eager, strict=True))
            if not same or not all(torch.equal(a, b) for a, b in zip(ours, eager, strict=True)):
                raise AssertionError(f"result {index}: other bits than eager's")
            continue
        exact = [one.exact[index].double() for one in wanted]
        try:
            assert_as_good_as_eager(ours, eager, exact, name=f"result {index}", allowance=NEVER_SEEN, least=least)
        except AssertionError as error:
            raise AssertionError(" ".join(str(error).split())) from None


def _copied(arguments: Arguments, *, wide: bool) -> Arguments:
    """Copies, since an op may write into them; `wide`: operands in fp64, 4-bit scales as they are."""

    def copy(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            four_bit = value[0].dtype == torch.uint8
            return [part.clone() if four_bit else copy(part) for part in value]
        if not isinstance(value, Tensor):
            return value
        return value.double() if wide and value.is_floating_point() else value.clone()

    return tuple(copy(value) for value in arguments)


def _tensors(result: Any) -> list[Tensor]:
    if result is None:
        return []
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result for tensor in _tensors(part)]
