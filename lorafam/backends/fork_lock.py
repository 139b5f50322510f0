"""A lock that a forked child doesn't inherit held: the thread that held it isn't there."""

from __future__ import annotations

import os
import threading


class ForkLock:
    """A `threading.RLock`, for `with`, which is a new one in a forked child. It lives as long as the process."""

    def __init__(self) -> None:
        self._renew()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def _renew(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
