"""What the machine has: a compiler, NVIDIA's tools, packages, clocks."""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..cases import Case, Context
from ..device import device
from ..plan import OPTIONAL, Item

TOOLS = ("ncu", "nsys", "compute-sanitizer", "nvidia-smi", "ptxas", "git")
COMPILERS = ("gcc", "clang", "cc")


def cases(context: Context) -> Iterator[Case]:
    yield Case("compiler", compiler)
    yield Case("tools", lambda: {"found": {name: device().tool(name) for name in TOOLS}})
    yield Case("packages", lambda: {"not_installed": Item("", "", needs=OPTIONAL).missing()})
    yield Case("card", lambda: {"card": device().card(), "clocks": device().clocks(), "cores": os.cpu_count()})


def compiler() -> dict[str, Any]:
    """Triton compiles a launcher in C on the machine. Raises RuntimeError where that can't be done."""
    named = os.environ.get("CC")
    found = device().tool(named) if named else next(filter(None, map(device().tool, COMPILERS)), None)
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    lacking = [what for what, there in (("a C compiler", found), (str(header), header.is_file())) if not there]
    if lacking:
        raise RuntimeError(f"Triton compiles its launchers in C: missing {' and '.join(lacking)}")
    return {"compiler": found, "headers": str(header)}
