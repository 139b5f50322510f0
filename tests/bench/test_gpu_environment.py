"""What `make gpu` installs, and when it refuses: no package is installed here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lorafam.bench import gpu_environment as environment

ROOT = Path(__file__).parent.parent.parent
WITH_GPU = {"torch": "2.13.0+cu130", "triton": "3.9.0", "cuda": True}
WITHOUT = {"torch": "2.13.0+cpu", "triton": None, "cuda": False}


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What was made and installed, in order; a constraint file stands with its contents."""
    found: list[tuple[str, ...]] = []

    def make_venv(venv: Path) -> Path:
        found.append(("venv", str(venv)))
        return venv / "bin" / "python"

    def pip(python: Path, *arguments: str) -> None:
        found.append(tuple(Path(a).read_text() if a.endswith("constraints.txt") else a for a in arguments))

    monkeypatch.setattr(environment, "make_venv", make_venv)
    monkeypatch.setattr(environment, "pip", pip)
    return found


def given(monkeypatch: pytest.MonkeyPatch, *probes: dict[str, Any] | None) -> None:
    """What the machine's Python has, then the venv's, each time it is asked."""
    answers = iter(probes)
    monkeypatch.setattr(environment, "probe", lambda _: next(answers))


def test_torch_that_is_there_stays(monkeypatch: pytest.MonkeyPatch, done: list[tuple[str, ...]]) -> None:
    given(monkeypatch, WITH_GPU, WITH_GPU)
    environment.main(["v", "torch==9"])
    kept = "torch==2.13.0+cu130\ntriton==3.9.0\n"
    assert done == [("venv", "v"), ("--constraint", kept, "--editable", ".[dev]")]


def test_torch_is_installed_where_there_is_none(monkeypatch: pytest.MonkeyPatch, done: list[tuple[str, ...]]) -> None:
    given(monkeypatch, None, None, WITH_GPU)
    environment.main(["v", "torch==9"])
    assert done[1] == ("torch==9", "triton")
    assert done[2][1].startswith("torch==2.13.0+cu130\n")


def test_no_gpu_is_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch, done: list[tuple[str, ...]]) -> None:
    given(monkeypatch, WITHOUT)
    with pytest.raises(SystemExit, match=r"^gpu: expected a CUDA GPU, torch 2\.13\.0\+cpu finds none$"):
        environment.main(["v", "torch==9"])
    assert done == []


def test_no_gpu_is_told_right_after_torch(monkeypatch: pytest.MonkeyPatch, done: list[tuple[str, ...]]) -> None:
    given(monkeypatch, None, None, WITHOUT)
    with pytest.raises(SystemExit, match="expected a CUDA GPU"):
        environment.main(["v", "torch==9"])
    assert done == [("venv", "v"), ("torch==9", "triton")]


def test_without_triton_torch_alone_is_kept() -> None:
    assert environment.constraints(WITHOUT) == "torch==2.13.0+cpu\n"


def test_probe_of_this_python() -> None:
    found = environment.probe(sys.executable)
    assert found is not None
    assert found["torch"] == torch.__version__
    assert found["cuda"] == torch.cuda.is_available()


def test_venv_sees_this_python_s_torch(tmp_path: Path) -> None:
    """Also where this is a venv itself; a Python without torch is told apart."""
    python = environment.make_venv(tmp_path / "venv")
    found = environment.probe(python)
    assert found is not None
    assert found["torch"] == torch.__version__
    bare = subprocess.run([sys.executable, "-I", "-S", "-c", environment.PROBE], capture_output=True, text=True)
    assert bare.stdout.strip() == "null"


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_run_by_path(tmp_path: Path) -> None:
    """As the Makefile runs it: one line, and nothing is made."""
    command = [sys.executable, str(ROOT / "bench" / "gpu_environment.py"), str(tmp_path / "venv"), "torch==9"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines() == [f"gpu: expected a CUDA GPU, torch {torch.__version__} finds none"]
    assert not (tmp_path / "venv").exists()
