"""Numba beside its documented interface, seen alike in Numba 0.61.0 and 0.68.1."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from llvmlite.binding import llvm_version_info as LLVM_VERSION
from numba.core import cgutils
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.core.typing import signature

__all__ = ["LLVM_VERSION", "AnnouncedCFunc", "cgutils", "features", "keep_code", "signature"]


class KeptCode(FunctionCache):
    """A function's compiled code on disk. What can't be read is said, and compiled anew.

    The files are pickles: reading one runs what it says. So a folder that others could have written to isn't read;
    OSError.
    """

    def __init__(self, function: Any) -> None:
        super().__init__(function)
        folder = Path(self.cache_path)
        others = _others_who_write(folder, Path(inspect.getfile(function)))
        if others:
            raise OSError(f"{others} could have written to {folder}, whose files would be run")

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # whatever a pickle raises that was cut
            self._tell("can't be read, so they are compiled again", error)
        try:
            self.flush()
        except OSError as error:
            self._tell("can't be written", error)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            self._tell("can't be written", error)

    def _tell(self, what: str, error: Exception) -> None:
        told = f"{type(error).__name__}: {error}"
        warnings.warn(f"lorafam's compiled CPU kernels in {self.cache_path} {what} ({told})", stacklevel=3)


def _others_who_write(folder: Path, source: Path) -> str:
    """Who could have put files there that we wouldn't trust: neither we, root, nor whose source code it is."""
    if sys.platform == "win32" or not folder.exists():
        return ""
    there = folder.stat()
    if there.st_uid not in (os.getuid(), 0, source.stat().st_uid):
        return f"user {there.st_uid}"
    return "every user" if there.st_mode & 0o002 else ""


def keep_code(dispatcher: Any) -> Any:
    """A jitted function, its code kept on disk. Raises OSError or RuntimeError where there is no folder for it."""
    dispatcher._cache = KeptCode(dispatcher.py_func)
    return dispatcher


class AnnouncedCFunc(CFunc):
    """A C callback that calls `announce` when it is compiled, not when it comes from disk."""

    _pyfunc: Any

    def announce(self) -> None:
        raise NotImplementedError

    def enable_caching(self) -> None:
        self._cache = KeptCode(self._pyfunc)

    def _compile_uncached(self) -> Any:
        self.announce()
        return super()._compile_uncached()  # type: ignore[misc]


def features() -> set[str]:
    """What the processor that Numba compiles for has, "+avx2"; NUMBA_CPU_FEATURES counts."""
    return set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
