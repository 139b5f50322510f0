"""Names that other libraries don't promise to keep are in lorafam/compat alone, and those there exist in the versions
that are installed.
"""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
COMPAT = sorted((ROOT / "lorafam" / "compat").glob("[a-z]*.py"))
FILES = sorted({path for folder in ("lorafam", "kernels") for path in (ROOT / folder).rglob("*.py")} - {*COMPAT})
LIBRARIES = {"torch", "triton", "numba", "transformers", "peft"}
# of no promise, whatever their names
INTERNAL = ("numba.core", "peft.tuners.lora.dora", "peft.utils.integrations")


def private_names(path: Path) -> list[str]:
    """Dotted names with a private part that a file imports, or reaches from a library's module."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [ast.unparse(node)]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if not all(part.isidentifier() for part in parts):
                # of a result, not of a module
                continue
            private = any(part.startswith("_") and not part.startswith("__") for part in parts)
            if parts[0] in LIBRARIES and (private or name.startswith(INTERNAL)):
                found.append(name)
    # torch._C, of torch._C._x
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_in_compat(path: Path) -> None:
    assert private_names(path) == []


@pytest.mark.parametrize("path", COMPAT, ids=lambda path: path.stem)
def test_what_compat_names_is_there(path: Path) -> None:
    importlib.import_module(f"lorafam.compat.{path.stem}")
    for name in private_names(path):
        if "._cuda_" in name and torch.version.cuda is None:
            # a build for the CPU has none of these
            continue
        library, *parts = name.split(".")
        found = importlib.import_module(library)
        for part in parts:
            if not hasattr(found, part):
                # a module that its package doesn't import
                importlib.import_module(f"{found.__name__}.{part}")
            found = getattr(found, part)


def test_a_trainer_without_the_overridden_steps_is_refused() -> None:
    from lorafam.compat import trainer

    class Renamed:
        _save = _save_checkpoint = _get_output_dir = _load_from_checkpoint = None

    with pytest.raises(ImportError, match=r"its Trainer has no _get_train_sampler$"):
        trainer.check(Renamed)


def test_the_check_sees_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "new.py"
    path.write_text(
        "import torch._C\nfrom numba.core import types\nfrom torch import nn\nx, y = torch._C._len(), torch.nn.Linear\n"
    )
    assert {"numba.core.types", "torch._C._len"} <= set(private_names(path))
    assert not {"torch.nn", "torch.nn.Linear"} & set(private_names(path))
