"""What CONTRIBUTING's table says is all that a new thing takes: a patch for each, applied to a copy of this tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tree import copied_tree

# kind → what its patch may touch, and the tests it must pass; those of formats in Triton's interpreter too
PATCHES = {
    "method": (
        ("lorafam/methods/", "lorafam/reference/"),
        ("tests/methods/test_contract.py", "-k", "lora_fa and numba and (dense or nf4)"),
        ("",),
    ),
    "format": (
        ("kernels/formats.py",),
        ("tests/backends/test_formats.py", "tests/kernels/test_formats.py", "-k", "stairs and not simulate"),
        ("", "interpret"),
    ),
    "op": (
        ("lorafam/ops/", "lorafam/reference/", "lorafam/backends/", "tests/ops/"),
        ("tests/ops", "-k", "column_norm and not simulate"),
        ("", "interpret"),
    ),
}


@pytest.mark.parametrize("kind", PATCHES)
def test_a_patch_touches_what_the_table_names_and_passes(kind: str, tmp_path: Path) -> None:
    places, tests, backends = PATCHES[kind]
    patch = Path(__file__).parent / f"{kind}.patch"
    touched = re.findall(r"^\+\+\+ b/(\S+)", patch.read_text(encoding="utf-8"), re.MULTILINE)
    assert touched
    assert all(file.startswith(places) for file in touched), touched
    copy = copied_tree(tmp_path)
    subprocess.run(["git", "apply", str(patch)], cwd=copy, check=True)
    environment = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    for backend in backends:
        environment["LORAFAM_BACKEND"] = backend
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
        passed = re.search(r"(\d+) passed", done.stdout)
        assert passed is not None
        assert int(passed[1]) >= 5, done.stdout[-500:]
