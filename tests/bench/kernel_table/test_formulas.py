"""Every kernel has a row, and the page has what is generated without a compiler."""

from __future__ import annotations

import pytest
from lorafam.bench.kernel_table import formulas
from lorafam.bench.kernel_table.page import PAGE, sections

from tests.kernels.sources import defined_kernels


def test_every_kernel_has_a_row_that_says_what_it_computes() -> None:
    files = formulas.kernel_files()
    assert {f"{name}_kernel" for name in files} == defined_kernels()
    assert files["row_norm"].startswith("n_j = ")
    # an equation in the paragraph below
    assert files["adalora_penalty_grad"].endswith("dP = (2 g / d) S P [R, L]; 0 where d = 0")
    assert all(text and "\n" not in text for text in files.values())
    rows = [line.split(" | ") for line in formulas.table()[2:]]
    assert [row[0] for row in rows] == [f"| `{name}`" for name in formulas.FORMULAS]
    assert {len(row) for row in rows} == {5}


def test_the_page_has_them() -> None:
    assert sections(PAGE.read_text(encoding="utf-8"))["formulas"].split("\n") == formulas.table(), "make kernel-table"


def test_a_kernel_without_a_formula_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(formulas.FORMULAS, "dropout")
    with pytest.raises(ValueError, match="dropout"):
        formulas.table()
