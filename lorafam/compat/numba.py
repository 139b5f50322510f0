"""Numba beside its documented interface, seen alike in Numba 0.61.0 and 0.68.1."""

from __future__ import annotations

from typing import Any

from llvmlite.binding import llvm_version_info as LLVM_VERSION
from numba.core import cgutils
from numba.core.ccallback import CFunc
from numba.core.registry import cpu_target
from numba.core.typing import signature

__all__ = ["LLVM_VERSION", "AnnouncedCFunc", "cgutils", "features", "signature"]


class AnnouncedCFunc(CFunc):
    """A C callback that calls `announce` when it is compiled, not when it comes from disk."""

    def announce(self) -> None:
        raise NotImplementedError

    def _compile_uncached(self) -> Any:
        self.announce()
        return super()._compile_uncached()  # type: ignore[misc]


def features() -> set[str]:
    """What the processor that Numba compiles for has, "+avx2"; NUMBA_CPU_FEATURES counts."""
    return set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
