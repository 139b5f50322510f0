"""`make architectures` with fakes for what is tried: what is run again, what the page says, and no pass for less."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from lorafam.bench.architectures import __main__ as architectures
from lorafam.bench.architectures import page as pages
from lorafam.bench.architectures.architecture import KINDS, Architecture, Refusal
from lorafam.bench.architectures.columns import COLUMNS
from lorafam.bench.architectures.inputs import words
from lorafam.bench.architectures.models import WAYS
from lorafam.bench.architectures.outcome import failure
from lorafam.bench.architectures.rows import FAST, ROWS

ROOT = Path(__file__).parents[3]
YES = {"outcome": "works", "why": ""}
OF = {"code": "abc", "torch": "2.13.0"}
ONE = Architecture("one", "decoder", "OneForCausalLM", {}, words(), generates=True)
TWO = Architecture("two", "encoder", "TwoModel", {}, words(), note="odd")


def result(columns: tuple[str, ...] = pages.COLUMNS, **changed: dict[str, str]) -> dict[str, Any]:
    """All right, but for `changed`: "column way" to an outcome."""
    found = {column: {way: changed.get(f"{column} {way}", YES) for way in pages.WAYS} for column in columns}
    return {
        "of": OF,
        "layers": {"adapt": "14", "adapt NF4": "14", "accelerate": "14 fused"},
        "columns": found,
        "seconds": 90,
    }


def line(text: str, name: str) -> str:
    (found,) = (line for line in text.splitlines() if line.startswith(f"| {name}"))
    return found


def test_the_rows_are_enough_and_of_every_kind() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS) >= 40
    assert {row.kind for row in ROWS} == set(KINDS)
    assert len(FAST) == len(set(FAST)) == 8
    assert len({row.kind for row in ROWS if row.name in FAST}) >= 6
    assert tuple(COLUMNS) == pages.COLUMNS
    assert tuple(way.name for way in WAYS) == pages.WAYS


def test_a_cell_says_yes_where_all_four_ways_work_alone() -> None:
    wrong = {"outcome": "fails", "why": "AssertionError (a.py:1): 3 | 4"}
    right = {"outcome": "refused", "why": "PEFT refuses too"}
    other = result(pages.COLUMNS[:2], **{"forward adapt": wrong, "backward adapt NF4": right})
    text = pages.page((ONE, TWO), {"one": result(), "two": other}, OF)
    assert line(text, "one") == "| one | `OneForCausalLM` | 14; 14 fused | yes | yes | yes | yes | yes | yes |"
    cells = line(text, "two").split(" | ")
    assert cells[0] == "| two (1)"
    assert cells[3] == "adapt: **no** (2); adapt NF4: yes; accelerate: yes; accelerate 4-bit: yes"
    assert cells[4] == "adapt: yes; adapt NF4: refused (3); accelerate: yes; accelerate 4-bit: yes"
    assert cells[5:] == ["–", "–", "–", "– |"]
    notes = [line for line in text.splitlines() if line[:1].isdigit() and line[1:3] == ". "]
    assert notes == ["1. odd", "2. AssertionError (a.py:1): 3 \\| 4", "3. PEFT refuses too"]
    assert "1 of 2 architectures work in every column that applies. torch 2.13.0. 3 minutes" in text
    assert pages.failed((ONE, TWO), {"one": result(), "two": other}) == [f"two: forward, adapt: {wrong['why']}"]


def test_what_was_not_tried_or_is_of_another_code_says_so_and_does_not_count() -> None:
    text = pages.page((ONE, TWO), {"one": {**result(), "of": {"code": "old"}}, "two": {"error": "killed"}}, OF)
    assert line(text, "one (1)").endswith("| yes | yes | yes | yes | yes | yes |")
    assert "1. of an earlier code or other versions" in text
    assert line(text, "two").count("not run (3)") == 6
    assert "3. killed" in text
    assert "0 of 2 architectures work" in pages.page((ONE, TWO), {"two": {"error": "killed"}}, OF)
    assert pages.failed((ONE, TWO), {"two": {"error": "killed"}}) == ["one: not tried", "two: killed"]


@pytest.mark.parametrize(
    ("ways", "columns", "text", "outcome"),
    [
        ((), (), "x: computes with its weight itself", "refused"),
        (("adapt",), ("forward",), "x: computes with its weight itself", "refused"),
        (("adapt NF4",), (), "x: computes with its weight itself", "fails"),
        ((), ("merge",), "x: computes with its weight itself", "fails"),
        ((), (), "something else", "fails"),
    ],
)
def test_only_the_error_that_a_row_knows_is_a_refusal(
    ways: tuple[str, ...], columns: tuple[str, ...], text: str, outcome: str
) -> None:
    row = ONE._replace(refused=(Refusal("weight itself", "PEFT's isn't trained", ways, columns),))
    try:
        raise ValueError(text)
    except ValueError as error:
        found = failure(row, WAYS[0], "forward", error)
    assert found["outcome"] == outcome
    assert found["why"] == "PEFT's isn't trained" if outcome == "refused" else text in found["why"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root where everything that is tried works; `tried` lists it."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "lorafam").mkdir()
    (tmp_path / "lorafam" / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(architectures, "ROWS", (ONE, TWO))
    monkeypatch.setattr(architectures, "BY_NAME", {"one": ONE, "two": TWO})
    monkeypatch.setattr(architectures, "tried", lambda name, folder, minutes: tried.append(name) or result())
    tried.clear()
    return tmp_path


tried: list[str] = []


def test_what_this_code_has_tried_is_not_tried_again_unless_named(root: Path) -> None:
    assert architectures.main([], root) == 0
    assert tried == ["one", "two"]
    assert "2 of 2 architectures" in (root / "docs" / "architectures.md").read_text()
    assert architectures.main([], root) == 0
    assert tried == ["one", "two"]
    assert architectures.main(["two"], root) == 0
    assert tried == ["one", "two", "two"]
    (root / "lorafam" / "a.py").write_text("a = 2\n")
    architectures.main(["one"], root)
    assert tried[3:] == ["one"]
    assert "two (" in (root / "docs" / "architectures.md").read_text()
    architectures.main([], root)
    assert tried[4:] == ["two"]


def test_the_exit_code_tells_of_what_is_not_right(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(architectures, "tried", lambda name, folder, minutes: {"error": "killed"})
    assert architectures.main([], root) == 1
    assert json.loads((root / "build" / "architectures" / "one.json").read_text())["error"] == "killed"


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("exit 3", "exit code 3: "),
        ("echo went wrong >&2; exit 1", "exit code 1: went wrong"),
        ("exit 0", "exit code 0: "),
        ("sleep 60", "not finished in 0.01 minutes"),
    ],
)
def test_a_process_that_does_not_end_well_is_no_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, error: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    assert architectures.tried("one", tmp_path, 0.01) == {"error": error}


def test_the_page_is_the_one_that_was_made() -> None:
    """docs/architectures.md has every row, of which 36 and more work."""
    text = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    assert text.startswith(pages.HEAD)
    for row in ROWS:
        assert f"| {row.name} " in text
    works, of = (int(word) for word in text.split(" architectures work")[0].split("\n")[-1].split(" of "))
    assert of == len(ROWS)
    assert works >= 36
