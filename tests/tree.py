"""A copy of this tree, to be changed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

ROOT = Path(__file__).parents[1]


def copied_tree(folder: Path) -> Path:
    """In a new folder below `folder`, with kernels/ and bench/ where they are installed."""
    copy = folder / "lorafam"
    left = shutil.ignore_patterns(".git", ".venv*", "build", "demo-output", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=left)
    for name in ("kernels", "bench"):
        os.symlink(Path("..") / name, copy / "lorafam" / name)
    return copy
