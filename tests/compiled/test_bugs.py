"""Every seeded bug has its place in the kernels as they are: one that doesn't would end `make bugs`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.compiled.bugs import BUGS

KERNELS = Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: f"{bug.file}: {bug.operator}")
def test_it_stands_in_the_source(bug) -> None:  # type: ignore[no-untyped-def]
    assert bug.old != bug.new
    assert bug.old in (KERNELS / bug.file).read_text(encoding="utf-8")
