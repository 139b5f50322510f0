"""Kernels compiled on first use for the processor at hand, and kept on disk."""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import cfunc, njit, types

_lock = threading.RLock()
_told = False
_log = logging.getLogger("lorafam")


def _digest() -> int:
    """Numba looks at the file of a kernel alone to see whether it has changed, not at those it takes functions from."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return int.from_bytes(hashlib.sha256(sources).digest()[:4], "big") | 1


# goes into every kernel as a constant that it needs not
SOURCES = _digest()


def compiled(maker: Callable[..., Callable[[int], None]]) -> Callable[..., int]:
    """A maker of kernels as a function that gives the compiled kernel's address; its arguments are constants to the
    kernel, which takes the address of a team's data.
    """

    @functools.cache
    def address(*constants: int) -> int:
        with _lock:
            return _compile(maker(*constants, SOURCES), maker.__name__)

    kept: dict[int, Any] = {}

    def _compile(function: Callable[[int], None], name: str) -> int:
        compile_it = cfunc(types.void(types.int64), nopython=True, cache=True, error_model="numpy")
        found = compile_it(function)
        kept[found.address] = found
        return int(found.address)

    return address


def kernel(function: Callable[..., Any]) -> Any:
    """A function over arrays, compiled on first use and kept on disk; runs without the interpreter's lock, in IEEE
    arithmetic.
    """
    return njit(nogil=True, cache=True, error_model="numpy")(function)
