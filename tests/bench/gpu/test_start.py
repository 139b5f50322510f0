"""lorafam importable without an installation, and wheels without pip."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from lorafam.bench.gpu import start

ASKED = """
import importlib.metadata, lorafam.kernels, lorafam.bench.gpu.plan, lorafam
print(importlib.metadata.version("lorafam"), lorafam.__file__, lorafam.kernels.__file__)
"""


def test_the_tree_is_importable_without_anything_installed(tmp_path: Path) -> None:
    tree = start.linked_tree(tmp_path / "tree")
    # -I: neither this environment's lorafam nor the checkout's
    paths = [path for path in sys.path if path.endswith("site-packages")]
    code = f"import sys; sys.meta_path[:] = sys.meta_path[-3:]; sys.path[:0] = {[str(tree), *paths]}\n{ASKED}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    version, *files = done.stdout.split()
    assert version == "0.1.0"
    assert files == [str(tree / "lorafam/__init__.py"), str(tree / "lorafam/kernels/__init__.py")]


def test_the_tree_follows_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    for name in ("lorafam/a.py", "kernels/b.py", "kernels/__pycache__/b.pyc", "bench/results/x/page.md", "tests/t.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    for name in start.FILES:
        (checkout / name).write_text('version = "1.2"')
    monkeypatch.setattr(start, "ROOT", checkout)
    tree = start.linked_tree(tmp_path / "tree")
    links = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_symlink()}
    assert links == {"lorafam/a.py", "lorafam/kernels/b.py", "tests/t.py", *start.FILES}
    (checkout / "lorafam/a.py").rename(checkout / "lorafam/c.py")
    start.linked_tree(tmp_path / "tree")
    assert not (tree / "lorafam/a.py").is_symlink()
    assert (tree / "lorafam/c.py").is_file()


def test_paths_are_those_of_where_it_is_called_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["--part", "check", "--results", "a b/c", "--packed=/d e.tar.gz", "--minutes", "2"]
    expected = ["--part", "check", "--minutes", "2", f"--results={tmp_path}/a b/c", "--packed=/d e.tar.gz"]
    assert start.absolute(given) == expected
    assert start.absolute(["--list"]) == ["--list"]


def test_make_hands_over_paths_with_spaces(tmp_path: Path) -> None:
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "WHEELS=$WHEELS" "$@"\nexit ${CODE}\n')
    echo.chmod(0o755)
    given = [f"PYTHON={echo}", "PART=check", "RESULTS=a b", "PACKED=c d.tar.gz", "WHEELS=e f"]
    for code, expected in (("0", 0), ("75", 0), ("1", 2)):
        command = ["make", "-s", "-C", str(start.ROOT), "gpu", *given, f"CODE={code}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == expected
        assert done.stdout.splitlines() == [
            "WHEELS=e f", "bench/gpu/start.py", "--part", "check", "--results", "a b", "--packed", "c d.tar.gz",
        ]  # fmt: skip


def test_a_python_without_torch_is_refused() -> None:
    command = [sys.executable, "-I", "-S", start.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"gpu: {sys.executable} has no torch: name one that has with PYTHON=\n"


def wheel(folder: Path, name: str, module: str) -> None:
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(f"{module}/__init__.py", "here = True\n")


def test_wheels_are_unpacked_beside_lorafam(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wheel(tmp_path, "some_thing-1.0-py3-none-any.whl", "some_thing")
    wheel(tmp_path, "torch-9.0-py3-none-any.whl", "torch")
    (into,) = start.unpacked(str(tmp_path), tmp_path / "into")
    assert [path.name for path in into.iterdir()] == ["some_thing"]
    assert "torch-9.0-py3-none-any.whl: left aside" in capsys.readouterr().out
    assert start.unpacked("", tmp_path / "into") == []


def test_wheels_for_another_machine_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no wheels are there"):
        start.unpacked(str(tmp_path), tmp_path / "into")
    wheel(tmp_path, "some_thing-1.0-cp32-cp32-any.whl", "some_thing")
    with pytest.raises(SystemExit, match="is not for this Python and machine"):
        start.unpacked(str(tmp_path), tmp_path / "into")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bitsandbytes-0.50.0-py3-none-manylinux_2_24_x86_64.whl", "x86_64"),
        ("bitsandbytes-0.50.0-py3-none-manylinux_2_24_aarch64.whl", "aarch64"),
        ("bitsandbytes-0.50.0-py3-none-win_amd64.whl", ""),
        ("x-1-cp38-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", "x86_64"),
        ("x-1-cp38-cp38-manylinux2014_x86_64.whl", ""),
        ("x-1-py2.py3-none-any.whl", "x86_64 aarch64"),
    ],
)
def test_fits(name: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for machine in ("x86_64", "aarch64"):
        monkeypatch.setattr(start.os, "uname", lambda machine=machine: type("U", (), {"machine": machine}))
        assert start.fits(name) == (machine in expected.split())
