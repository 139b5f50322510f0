"""Files that are there whole or as they were, after a crash of the machine too."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# ends a temporary name, beside the file, after its name and the process: what a killed process leaves
LEFTOVER = ".tmp"


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
