"""A part with made-up cases, and a device that is never asked for anything: needs the standard library alone."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cases import Case, Context, LeftOutError


class Device:
    """Once a case has lost it, it answers no more in this process."""

    longest = None
    lost = False

    def synchronize(self) -> None:
        if Device.lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")


def cases(context: Context, names: list[str], seconds: float = 0.0, limit: float = 60.0) -> Iterator[Case]:
    """What a case does is in its name; each that runs leaves a line in a file."""

    def run(name: str) -> dict[str, Any]:
        with open(Path(context.folder) / "runs.txt", "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        if "hangs" in name:
            time.sleep(1000)
        time.sleep(seconds)
        if "aborts" in name:
            os.abort()
        if "loses" in name:
            # a launch goes wrong after it has returned
            Device.lost = True
        if "wrong" in name:
            raise AssertionError("RMS error 1.00e+00\nand more")
        if "absent" in name:
            raise LeftOutError("ncu is not installed")
        with open(Path(context.folder) / "ends.txt", "a", encoding="utf-8") as file:
            file.write(f"{name}\n")
        return {"value": len(name)}

    if names == ["no start"]:
        raise SystemExit(3)
    for name in names:
        yield Case(name, lambda name=name: run(name), expects=seconds, limit=limit)
