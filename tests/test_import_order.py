"""The way of the data: a file imports only from folders to its left in this list (DESIGN of the tree, held by AST)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ORDER = [
    {"kernels"},
    {"config", "files", "reference", "compat"},
    {"ops"},
    {"backends"},
    {"inspect"},
    {"tune"},
    {"weights"},
    {"autograd"},
    {"functional"},
    {"methods"},
    {"model"},
    {"optim"},
    {"interop"},
    {"finetune"},
    {"bench"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}
FILES = sorted(
    path
    for folder in ("kernels", "lorafam", "bench")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "lorafam" / "__init__.py"
)


def dotted(path: Path) -> list[str]:
    """The module's name: kernels/ and bench/ are installed inside lorafam."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] != "lorafam":
        parts.insert(0, "lorafam")
    return parts


def imported(path: Path) -> set[str]:
    """Which names right below `lorafam` a file imports, wherever in the file the import stands."""
    package = dotted(path)[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            names = [[*base, *(node.module or "").split("."), alias.name] for alias in node.names]
            names = [[part for part in name if part] for name in names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "lorafam" and len(name) > 1}
    return found & LEVEL.keys()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_left(path: Path) -> None:
    own = dotted(path)[1]
    if own not in LEVEL:
        pytest.fail(f"{path}: {own!r} has no place in ORDER")
    for name in imported(path) - {own}:
        assert LEVEL[name] < LEVEL[own], f"{own} imports {name}, which is not to its left"


def test_nothing_that_is_installed_imports_the_tests() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert "tests" not in {name.split(".")[0] for name in names}, path


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda path: path.name)
def test_kernels_import_triton_and_themselves_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= {"triton", "json", "functools", "contextlib"}
        if isinstance(node, ast.ImportFrom) and not node.level:
            library = {"__future__", "collections", "dataclasses", "pathlib", "typing"}
            assert (node.module or "").split(".")[0] in library | {"triton"}


def test_the_check_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    path = tmp_path / "lorafam" / "ops" / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text("from ..methods import lora\nfrom .. import model\nimport lorafam.finetune.loop\nimport torch\n")
    assert imported(path) == {"methods", "model", "finetune"}
