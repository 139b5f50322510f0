"""Resident memory of this process, and its peak while something runs, in bytes.

On Linux the kernel keeps the peak itself (VmHWM) and forgets it on request, so short peaks count too. Elsewhere, and
where that request is not allowed, a thread looks every 10 ms; `PeakMemory.source` says which.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path
from types import TracebackType

import psutil

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_INTERVAL = 0.01


def resident() -> int:
    """Bytes resident now."""
    return psutil.Process().memory_info().rss


def release_freed() -> None:
    """Gives freed memory back to the system where the C library can be asked to (glibc), so that `resident` counts what
    is in use, not what loading left behind.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


class PeakMemory:
    """`with PeakMemory() as memory:` then `memory.peak`, the most bytes resident meanwhile."""

    def __init__(self) -> None:
        self.peak = 0
        self.source = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        self.source = "kernel" if _forget_peak() else "sampled every 10 ms"
        self.peak = resident()
        if self.source != "kernel":
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            self.peak = max(self.peak, _kernel_peak())
        else:
            self._stop.set()
            self._thread.join()
            self.peak = max(self.peak, resident())

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(_INTERVAL):
            self.peak = max(self.peak, process.memory_info().rss)


def _forget_peak() -> bool:
    """Asks the kernel to forget the peak resident size; whether it did."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def _kernel_peak() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{_STATUS} has no VmHWM")
