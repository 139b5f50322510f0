"""Files that lorafam keeps on a user's machine by the model of a GPU or processor and by versions, in
$LORAFAM_CACHE_DIR or ~/.cache/lorafam.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import write_json

if sys.platform != "win32":
    import fcntl

CACHE_DIR = "LORAFAM_CACHE_DIR"


def user_file(kind: str, model: str, packages: tuple[str, ...]) -> Path:
    """Where `kind` is kept for a model of GPU or processor and the installed versions of `packages`."""
    versions = "-".join(importlib.metadata.version(package) for package in packages)
    name = "".join(letter if letter.isalnum() else "-" for letter in model)
    folder = os.environ.get(CACHE_DIR)
    return (Path(folder) if folder else Path.home() / ".cache" / "lorafam") / f"{kind}-{name}-{versions}.json"


def keep(path: Path, data: Any) -> None:
    """Writes JSON, whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, data)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Meanwhile no other process is in here for this file; one that dies leaves. Where there can be no lock beside the
    file, nor on Windows, nobody waits.
    """
    if sys.platform == "win32":
        yield
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(f".{path.name}.lock").open("w")
    except OSError as error:
        warnings.warn(f"several processes may do the same work at once: {error}", stacklevel=2)
        yield
        return
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
