"""Whether a dense weight is multiplied faster by our kernels or by the platform's library: timed on first use, by
shape, tokens, dtypes and threads, and kept in a file, so that later runs take the same way and give the same bits.

`LORAFAM_DENSE=own|platform` decides without timing.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

import torch

from ..fork_lock import ForkLock
from ..user_files import alone, keep, user_file
from .processor import model_name, processor

VARIABLE = "LORAFAM_DENSE"
OWN, PLATFORM = "own", "platform"
# weights
_LEAST = 1 << 17
_ROUNDS = 5
# what ours must save to be taken
_GAIN = 0.95

Result = TypeVar("Result")
_lock = ForkLock()
_chosen: dict[str, str] = {}
_always: ContextVar[str | None] = ContextVar("always", default=None)


@contextlib.contextmanager
def always(choice: str) -> Iterator[None]:
    """Meanwhile this thread takes OWN or PLATFORM, and times nothing."""
    before = _always.set(choice)
    try:
        yield
    finally:
        _always.reset(before)


def is_worth_timing(weight: torch.Tensor) -> bool:
    """Whether it is so large that the ways differ, or nothing is timed."""
    return weight.numel() >= _LEAST or _always.get() is not None


def known(direction: str, weight: torch.Tensor, dtype: torch.dtype, tokens: int) -> str | None:
    """OWN or PLATFORM, or None where it hasn't been timed yet. Raises ValueError for an unknown LORAFAM_DENSE."""
    asked = _always.get() or os.environ.get(VARIABLE, "")
    if asked:
        if asked not in (OWN, PLATFORM):
            raise ValueError(f"{VARIABLE}: expected {OWN!r} or {PLATFORM!r}, got {asked!r}")
        return asked
    return _chosen.get(_key(direction, weight, dtype, tokens))


def faster(
    direction: str,
    weight: torch.Tensor,
    dtype: torch.dtype,
    tokens: int,
    own: Callable[[], Result],
    platform: Callable[[], Result],
) -> Result:
    """The result of the faster of two calls that do the same."""
    choice = known(direction, weight, dtype, tokens)
    if choice is None:
        choice = _choose(_key(direction, weight, dtype, tokens), own, platform)
    return own() if choice == OWN else platform()


def _key(direction: str, weight: torch.Tensor, dtype: torch.dtype, tokens: int) -> str:
    # up to the next power of two
    most = 1 << (tokens - 1).bit_length()
    kinds = f"{str(weight.dtype)[6:]} {str(dtype)[6:]}"
    return (
        f"{direction} {weight.shape[0]}x{weight.shape[1]} {most} {kinds} {torch.get_num_threads()} {processor().name}"
    )


def _choose(key: str, own: Callable[[], object], platform: Callable[[], object]) -> str:
    with _lock:
        if key not in _chosen:
            # processes that start together wait for the first one's choice, and don't disturb its timing
            with alone(_file()):
                _chosen.update(_kept())
                if key not in _chosen:
                    _chosen[key] = _timed(own, platform)
                    _keep(key, _chosen[key])
        return _chosen[key]


def _timed(own: Callable[[], object], platform: Callable[[], object]) -> str:
    seconds: tuple[list[float], list[float]] = ([], [])
    # the first round warms up, and compiles
    for turn in range(_ROUNDS + 1):
        for call, found in zip((own, platform), seconds, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                found.append(time.perf_counter() - start)
    ours, theirs = map(statistics.median, seconds)
    return OWN if ours < _GAIN * theirs else PLATFORM


@functools.cache
def _file() -> Path:
    return user_file("dense-products", model_name(), ("lorafam", "torch", "numba"))


def _kept() -> dict[str, str]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # none yet, or damaged: timed again
        return {}
    items = found.items() if isinstance(found, dict) else ()
    return {key: choice for key, choice in items if choice in (OWN, PLATFORM)}


def _keep(key: str, choice: str) -> None:
    try:
        keep(_file(), {**_kept(), key: choice})
    except OSError as error:
        warnings.warn(
            f"which dense product is faster can't be kept and is timed in each process: {error}", stacklevel=2
        )
