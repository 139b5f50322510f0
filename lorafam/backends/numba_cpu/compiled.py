"""Kernels compiled on first use for the processor at hand, and kept on disk by Numba, apart for each processor.

Where nothing can be written they are compiled anew in each process, which a warning says once.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import njit, types

from ...compat.numba import AnnouncedCFunc, keep_code
from ..fork_lock import ForkLock

_Maker = Callable[..., Callable[[int], None]]
_lock = ForkLock()
_told: set[str] = set()


def _digest() -> int:
    """Numba looks at the file of a kernel alone to see whether it has changed, not at those it takes functions from."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return int.from_bytes(hashlib.sha256(sources).digest()[:4], "big") | 1


# a constant of every kernel
SOURCES = _digest()


class _Kernel(AnnouncedCFunc):
    """Says when it is compiled, not when it comes from disk."""

    def announce(self) -> None:
        if "compiling" not in _told:
            _told.add("compiling")
            print("lorafam: compiling CPU kernels, once for this processor…", file=sys.stderr, flush=True)


def compiled(maker: _Maker) -> Callable[..., int]:
    """A maker of kernels as a function that gives the compiled kernel's address; its arguments are constants to the
    kernel, which takes the address of a team's data.
    """
    kept: dict[tuple[int, ...], _Kernel] = {}
    # looked up on every call
    addresses: dict[tuple[int, ...], int] = {}

    def address(*constants: int) -> int:
        at = addresses.get(constants)
        if at is None:
            with _lock:
                if constants not in kept:
                    kept[constants] = _compile(maker(*constants, SOURCES))
                at = addresses[constants] = kept[constants].address or 0
        return at

    address.__name__, address.maker = maker.__name__, maker  # type: ignore[attr-defined]
    return address


def _compile(function: Callable[[int], None]) -> _Kernel:
    try:
        return _built(function, keep=True)
    except (OSError, RuntimeError) as error:
        # Numba's error where no folder can be written
        if isinstance(error, RuntimeError) and "cannot cache" not in str(error):
            raise
        _warn(error)
        return _built(function, keep=False)


def _built(function: Callable[[int], None], keep: bool) -> _Kernel:
    takes_and_gives = (types.int64,), types.void
    found = _Kernel(function, takes_and_gives, {}, {"nopython": True, "error_model": "numpy"})
    if keep:
        found.enable_caching()
    found.compile()
    return found


def kernel(function: Callable[..., Any]) -> Any:
    """A function over arrays, compiled on first use and kept on disk; runs without the interpreter's lock, in IEEE
    arithmetic.
    """
    dispatcher = njit(nogil=True, error_model="numpy")(function)
    try:
        return keep_code(dispatcher)
    except (OSError, RuntimeError) as error:
        _warn(error)
        return dispatcher


def _warn(error: Exception) -> None:
    if "cache" not in _told:
        _told.add("cache")
        warnings.warn(
            f"lorafam compiles its CPU kernels anew in each process, they can't be kept: {error}. "
            "NUMBA_CACHE_DIR names a folder that you, and you alone, can write to.",
            stacklevel=3,
        )
