"""Files that are there whole or as they were, after a crash of the machine too; folders that one process works in."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

# ends a temporary name, beside the file, after its name and the process: what a killed process leaves
LEFTOVER = ".tmp"

# in a folder that somebody works in
LOCK = ".lorafam-lock"


class FolderInUseError(Exception):
    """Another process, or another call in this one, works in the folder."""


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps others out of it that ask the same way; a process that dies leaves it free. Not on
    Windows, which has no such locks; a file system without them is told of.

    Raises FolderInUseError, OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    path = folder / LOCK
    # a link there isn't followed
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUseError(str(folder)) from None
        except OSError as error:
            warnings.warn(f"{folder} can't be kept from other processes: {error.strerror}", stacklevel=4)
        # who had it may have removed the file that was opened
        if not path.exists() or not os.path.samestat(os.fstat(lock), path.stat()):
            raise FolderInUseError(str(folder))
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(lock)


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """`write(temporary)`, flushed to the disk and renamed. Whatever it raises, the file is as it was."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{LEFTOVER}")
    try:
        write(temporary)
        descriptor = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """In UTF-8."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """As it is read by a person, too."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
