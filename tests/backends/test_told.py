"""An error in a line: what went wrong, not where."""

from __future__ import annotations

import pytest

from lorafam.backends.told import told


class CompilationError(Exception):
    """As Triton words it: the place, its source, then what is wrong, unless an inner function's error says it."""


OUTER = "at 75:8:\n    y = inner(x)\n        ^"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError(), "RuntimeError"),
        (ValueError("\n  too few \nand more"), "ValueError: too few"),
        (
            RuntimeError("CUDA error: an illegal memory access\nCompile with X"),
            "RuntimeError: CUDA error: an illegal memory access",
        ),
        (CompilationError(f"{OUTER}\nno int8"), "CompilationError: no int8"),
        (ValueError("x" * 600), f"ValueError: {'x' * 500}"),
    ],
)
def test_the_line(error: Exception, line: str) -> None:
    assert told(error) == line


@pytest.mark.parametrize("inner", [CompilationError("at 3:4:\n  x\n  ^\nno int8"), TypeError("no int8")])
def test_a_place_is_told_by_its_cause(inner: Exception) -> None:
    outer = CompilationError(OUTER)
    outer.__cause__ = inner
    assert told(outer) == f"{type(inner).__name__}: no int8"


def test_an_error_with_words_is_not_told_by_its_cause() -> None:
    error = RuntimeError("LORAFAM_PTXSIM must name a folder")
    error.__cause__ = ImportError("no module")
    assert told(error) == "RuntimeError: LORAFAM_PTXSIM must name a folder"
