"""Which kernels the folder kernels/ defines, read from its sources."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[2] / "kernels"


def defined_kernels() -> set[str]:
    """Names of the functions `..._kernel`."""
    return {
        line.removeprefix("def ").partition("(")[0]
        for source in FOLDER.glob("*.py")
        for line in source.read_text(encoding="utf-8").splitlines()
        if line.startswith("def ") and "_kernel(" in line
    }
