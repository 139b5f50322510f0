"""Kernels on disk: compiled once and said so, shared by processes, apart for each processor, not kept where nothing can
be written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from lorafam.backends.numba_cpu import compiled

ROOT = Path(__file__).parents[3]
# a product of few tokens is two kernels
CODE = """
import torch
from lorafam.backends import eager, numba_cpu
weight = torch.randn(96, 128)
storage = *(lambda codes, absmax: (codes, [absmax]))(*eager.quantize_4bit(weight, 64, "nf4")), [96, 128, 64, 0, 0]
x = torch.randn(1, 128)
y = numba_cpu.lora_linear(x, *storage, None, None, None, None)
torch.testing.assert_close(y, eager.lora_linear(x, *storage, None, None, None, None), rtol=1e-4, atol=1e-4)
"""
SAYS = "compiling CPU kernels"


def run(folder: Path, code: str = CODE, **environment: str) -> str:
    """What a process with its kernels in `folder` writes to stderr."""
    given = {**os.environ, "NUMBA_CACHE_DIR": str(folder), **environment}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_compiled_once_and_said(tmp_path: Path) -> None:
    assert run(tmp_path).count(SAYS) == 1
    assert SAYS not in run(tmp_path)


def test_processes_share(tmp_path: Path) -> None:
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: run(tmp_path), range(3)))
    assert SAYS not in run(tmp_path)


def test_another_processor_compiles_its_own(tmp_path: Path) -> None:
    run(tmp_path)
    other = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "+sse2"}
    assert SAYS in run(tmp_path, **other)
    assert SAYS not in run(tmp_path, **other)
    assert SAYS not in run(tmp_path)


def test_changed_sources_are_compiled_anew(tmp_path: Path) -> None:
    run(tmp_path)
    changed = "from lorafam.backends.numba_cpu import compiled\ncompiled.SOURCES += 2\n" + CODE
    assert SAYS in run(tmp_path, changed)


def test_importing_compiles_nothing(tmp_path: Path) -> None:
    assert SAYS not in run(tmp_path, "import lorafam")
    assert not list(tmp_path.rglob("*.nbi"))


def test_nothing_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Works, and warns."""

    def refuse(self: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    monkeypatch.setattr(compiled.AnnouncedCFunc, "enable_caching", refuse)
    monkeypatch.setattr(compiled, "_told", set())
    from lorafam.backends.numba_cpu import pack
    from lorafam.backends.numba_cpu.processor import processor

    fresh = compiled.compiled(pack._pack.maker)  # type: ignore[attr-defined]
    monkeypatch.setattr(pack, "_pack", fresh)
    with pytest.warns(UserWarning, match="anew in each process"):
        pack.pack(torch.randn(3, 64), 4, pack.IN_ORDER, processor())


def test_a_read_only_folder(tmp_path: Path) -> None:
    """Numba then keeps kernels in the user's own folder, or not at all; either way the results are right."""
    folder = tmp_path / "kept"
    folder.mkdir()
    folder.chmod(0o500)
    run(folder, HOME=str(tmp_path / "nobody"), XDG_CACHE_HOME=str(tmp_path / "nobody"))
    folder.chmod(0o700)


@pytest.mark.parametrize(
    ("ending", "damage"), [(".nbi", "empty"), (".nbi", "a folder"), (".nbc", "cut"), (".nbc", "other bytes")]
)
def test_damaged_files_are_told_and_compiled_again(damage: str, ending: str, tmp_path: Path) -> None:
    run(tmp_path)
    files = sorted(tmp_path.rglob(f"*{ending}"))
    assert files
    for file in files:
        content = file.read_bytes()
        file.unlink()
        if damage == "a folder":
            file.mkdir()
        else:
            file.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "other bytes": b"\xff" * 99}[damage])
    said = run(tmp_path)
    assert SAYS in said
    assert "can't be" in said
    if damage != "a folder":
        assert SAYS not in run(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="no such modes")
def test_a_folder_that_everybody_can_write_to_isn_t_read(tmp_path: Path) -> None:
    run(tmp_path)
    for folder in {file.parent for file in tmp_path.rglob("*.nbi")}:
        folder.chmod(0o777)
    said = run(tmp_path)
    assert "every user could have written to" in said
    assert SAYS in said
