from __future__ import annotations

import pytest
from lorafam.bench.kernel_table.page import PAGE, filled, sections

TEXT = """# Kept
<!-- generated: a -->
old
lines
<!-- end: a -->
kept too
<!-- generated: b -->

<!-- end: b -->
end
"""


def test_only_what_stands_between_the_marks_changes() -> None:
    assert sections(TEXT) == {"a": "old\nlines", "b": ""}
    new = filled(TEXT, {"a": ["1"], "b": ["2", "3"]})
    assert sections(new) == {"a": "1", "b": "2\n3"}
    assert new.replace("1\n", "old\nlines\n").replace("2\n3\n", "\n") == TEXT
    assert filled(new, {"a": ["1"], "b": ["2", "3"]}) == filled(new, {"b": ["2", "3"]}) == new


def test_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no section of the page: \['c'\]"):
        filled(TEXT, {"a": [], "c": []})


def test_the_page_keeps_how_kernels_are_checked() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "## How they are checked" in text
    assert list(sections(text)) == ["formulas", "resources", "instructions", "bytes", "times", "measured"]
    assert all(sections(text).values()), "make kernel-table"
