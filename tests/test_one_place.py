"""One thing is known in one place: what was said in many of them isn't any more."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import lorafam
from lorafam.ops.library import OPS

ROOT = Path(__file__).parent.parent
FOLDERS = ("kernels", "lorafam", "bench")
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}
METHODS = sorted(lorafam.config.METHODS)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def arguments(function: ast.FunctionDef) -> list[str]:
    return [one.arg for one in (*function.args.posonlyargs, *function.args.args)]


def test_a_weight_travels_whole_behind_an_op() -> None:
    """As a `Storage`: its three parts are arguments of ops and of what checks them alone."""
    for file, tree in TREES.items():
        for function in functions(tree):
            names = arguments(function)
            flat = [at for at in range(len(names) - 2) if names[at + 1 : at + 3] == ["scales", "layout"]]
            assert not flat or function.name in OPS or file.startswith("lorafam/ops/"), f"{file}: {function.name}"


def test_an_adapter_travels_whole_behind_a_function() -> None:
    """As an `Adapted`, but for the formulae themselves and what autograd must see."""
    for file, tree in TREES.items():
        if file.startswith("lorafam/backends/numba_cpu/"):
            for function in functions(tree):
                assert not {"A", "B", "scale", "bias"} <= {*arguments(function)}, f"{file}: {function.name}"


def test_names_say_what_they_hold() -> None:
    """`found` is for a few lines."""
    for file, tree in TREES.items():
        for function in functions(tree):
            lines = [node.lineno for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "found"]
            lines += [one.lineno for one in ast.walk(function) if isinstance(one, ast.arg) and one.arg == "found"]
            assert not lines or max(lines) - min(lines) <= 5, f"{file}: {function.name}"


def test_block_scales_are_not_called_as_lora_s() -> None:
    for file, tree in TREES.items():
        if file.startswith("lorafam/autograd/"):
            for function in functions(tree):
                rest = function.args.vararg
                assert rest is None or rest.arg != "scales", f"{file}: {function.name}"


def test_classes_have_names_of_their_own() -> None:
    counts = Counter(
        node.name
        for file, tree in TREES.items()
        if not file.startswith("bench/")
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in counts.items() if count > 1] == []


@pytest.mark.parametrize("method", METHODS)
def test_nobody_asks_for_a_method_by_its_name(method: str) -> None:
    for file, tree in TREES.items():
        if file.startswith(("bench/", f"lorafam/methods/{method}.py")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Compare):
                values = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                assert method not in values, f"{file}:{node.lineno}"


def test_files_are_replaced_whole_in_one_place() -> None:
    for file, tree in TREES.items():
        calls = [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert "os.replace" not in calls or file == "lorafam/files.py", file


def test_an_op_s_calls_stand_in_one_table() -> None:
    from lorafam.ops.samples import _ARGUMENTS

    assert _ARGUMENTS.keys() == OPS.keys()


@pytest.mark.parametrize("file", TREES)
def test_files_are_small(file: str) -> None:
    assert (ROOT / file).read_text(encoding="utf-8").count("\n") <= 300
