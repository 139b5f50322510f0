from __future__ import annotations

import os
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[3] / "bench"
LIGHT = ("__init__", "cases", "device", "plan", "runner", "store", "worker")
OF_LORAFAM = ("processes", "told")


@pytest.fixture
def light_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`lorafam.bench.gpu` as `light.gpu`, whose processes import neither lorafam nor torch and so start quickly; its
    part is `parts.made_up`.
    """
    tree = tmp_path / "tree"
    gpu = tree / "light" / "gpu"
    (gpu / "parts").mkdir(parents=True)
    for package in (gpu.parent, gpu / "parts"):
        (package / "__init__.py").write_text("")
    (gpu.parent / "files.py").symlink_to(BENCH / "files.py")
    backends = tree / "lorafam" / "backends"
    backends.mkdir(parents=True)
    for package in (backends.parent, backends):
        (package / "__init__.py").write_text("")
    for name in OF_LORAFAM:
        (backends / f"{name}.py").symlink_to(BENCH.parent / "lorafam" / "backends" / f"{name}.py")
    for name in LIGHT:
        (gpu / f"{name}.py").symlink_to(BENCH / "gpu" / f"{name}.py")
    (gpu / "parts" / "made_up.py").symlink_to(Path(__file__).parent / "made_up.py")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tree), os.environ.get("PYTHONPATH", "")]))
    # not the lorafam of the current folder
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    monkeypatch.setenv("LORAFAM_GPU_DEVICE", "light.gpu.parts.made_up:Device")
    return tree
