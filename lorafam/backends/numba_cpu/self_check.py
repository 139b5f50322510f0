"""Before the CPU kernels are trusted: the first call of an op in a dtype, over a kind of weight, compares the op's
cases of that kind with eager PyTorch, by the ratio rule, and keeps the result by processor and versions.

A Numba or an LLVM that compiles wrongly, or not at all, costs the calls of that kind their kernels: `selection` gives
them to eager PyTorch and says so, `explain` and `doctor` show why.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ...reference.ratio_rule import MIN_ELEMENTS
from .. import comparison
from ..fork_lock import ForkLock
from ..self_check_cases import Draw, cases
from ..told import told
from ..user_files import alone, keep, user_file
from .compiled import SOURCES
from .dense_choice import OWN, always
from .processor import Processor, model_name, processor

# each by itself as a whole direction runs them together
_TOGETHER = ("lora_project", "lora_linear", "lora_linear_grad", "lora_factors_grad")


class Kind(NamedTuple):
    """What an op's kernels are made for."""

    op: str
    dtype: torch.dtype | None
    four_bit: bool
    processor: Processor

    def __str__(self) -> str:
        dtype = "" if self.dtype is None else f" in {str(self.dtype).removeprefix('torch.')}"
        pairs = " with pairs of bf16" if self.processor.bf16 else ""
        return f"{self.op}{dtype}{' over 4 bits' * self.four_bit}, {self.processor.name}{pairs}"


_lock = ForkLock()
# why a kind isn't trusted; None: it is
_known: dict[Kind, str | None] = {}
# the same by what a call shows at once; LORAFAM_CPU is read when a process meets a kind first
_at_once: dict[tuple[object, ...], str | None] = {}
_together: dict[tuple[torch.dtype, bool], bool] = {}


def failure(op: str, args: Sequence[Any]) -> str | None:
    """Why such a call isn't left to the kernels; None where it is. The first one of a kind is checked."""
    try:
        key = op, args[0].dtype, args[1].dtype
    except AttributeError:
        # of lists, or no tensor
        key = op, *_made_for(args)
    if key not in _at_once:
        _at_once[key] = failure_of(op, *_made_for(args))
    return _at_once[key]


def failure_of(op: str, dtype: torch.dtype | None, four_bit: bool) -> str | None:
    """The same of an op in `dtype`."""
    kind = Kind(op, dtype, four_bit, processor())
    return _known[kind] if kind in _known else _found(kind)


def together_trusted(dtype: torch.dtype, four_bit: bool) -> bool:
    """Whether the ops of a layer over 4 bits, or a dense weight, are, which together run the same kernels."""
    found = _together.get((dtype, four_bit))
    if found is None:
        # the factors' products read no weight
        kinds = ((op, dtype, four_bit and op in ("lora_linear", "lora_linear_grad")) for op in _TOGETHER)
        found = _together[dtype, four_bit] = all(failure_of(*kind) is None for kind in kinds)
    return found


def failures() -> dict[str, dict[str, str]]:
    """What is known to fail, by op and by the words for a call of its kind; nothing is checked."""
    found: dict[str, dict[str, str]] = {}
    for kind, why in _kept().items():
        if why is not None:
            found.setdefault(re.split(r"\W", kind, maxsplit=1)[0], {})[kind] = why
    return found


def forget() -> None:
    """Nothing is known in this process any more."""
    for known in (_known, _at_once, _together):
        known.clear()


def _made_for(args: Sequence[Any]) -> tuple[torch.dtype | None, bool]:
    """The dtype of the tokens or the dense weight, and whether there are codes: an op's first two operands tell."""
    dtype, four_bit = None, False
    for value in args[:2]:
        if type(value) is list:
            value = value[0] if value else None
        if isinstance(value, torch.Tensor):
            if value.dtype is torch.uint8:
                four_bit = True
            elif dtype is None:
                dtype = value.dtype
    return dtype, four_bit


def _found(kind: Kind) -> str | None:
    """From the file, else checked; processes that start together wait for the first one's result."""
    with _lock:
        if kind not in _known:
            kept = _kept()
            if str(kind) not in kept:
                with alone(_file()):
                    kept = _kept()
                    if str(kind) not in kept:
                        kept[str(kind)] = _checked(kind)
                        _keep(kept)
            _known[kind] = kept[str(kind)]
    return _known[kind]


def _checked(kind: Kind) -> str | None:
    """What the first case that fails says."""
    from .. import eager, numba_cpu

    run = getattr(numba_cpu, kind.op)
    if run is getattr(eager, kind.op):
        return None
    cpu = torch.device("cpu")
    draw = functools.cache(lambda number: Draw(number, eager, cpu))
    # as ops run, whatever the call stands in that came first
    with torch.no_grad(), torch.autocast("cpu", enabled=False), always(OWN):
        for case in cases():
            if case.op == kind.op and _made_for(case.make(draw(0))) == kind[1:3]:
                try:
                    comparison.check(case, run, getattr(eager, case.op), draw, MIN_ELEMENTS)
                except (MemoryError, OSError):
                    # passes by itself: nothing is known then
                    raise
                except Exception as error:  # whatever a compiler raises
                    return f"{case.what}: {told(error)}"
    return None


@functools.cache
def _file() -> Path:
    # of these sources, which a developer changes
    return user_file(f"checked-cpu-kernels-{SOURCES:x}", model_name(), ("lorafam", "torch", "numba", "llvmlite"))


def _kept() -> dict[str, str | None]:
    path = _file()
    if not path.is_file():
        return {}
    try:
        verdicts = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(verdicts, dict) or not all(isinstance(why, str | None) for why in verdicts.values()):
            raise ValueError("expected an object of reasons by kind of call")
    except (OSError, ValueError) as error:
        warnings.warn(f"{path} is damaged, so lorafam checks its CPU kernels again: {error}", stacklevel=2)
        return {}
    return verdicts


def _keep(found: dict[str, str | None]) -> None:
    try:
        keep(_file(), found)
    except OSError as error:
        warnings.warn(f"the check of the CPU kernels can't be kept, each process repeats it: {error}", stacklevel=2)
