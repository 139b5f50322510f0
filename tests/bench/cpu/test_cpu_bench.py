"""The CPU's ratios end to end on a small layer; turns, lines and memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lorafam.bench.cpu.__main__ import Row, line, main, memory_rows
from lorafam.bench.cpu.interleaved import LEAST_ROUNDS, WARM, medians


def test_calls_take_turns() -> None:
    seen: list[str] = []
    found = medians({"a": lambda: seen.append("a"), "b": lambda: seen.append("b")}, 0.0)
    assert set(found) == {"a", "b"}
    assert seen == ["a"] * (WARM + 1) + ["b"] * (WARM + 1) + seen[: 2 * (WARM + 1)] * (LEAST_ROUNDS - 1)


@pytest.mark.parametrize(("theirs", "reached"), [(2.0, True), (1.9, False)])
def test_a_line_says_what_is_not_reached(theirs: float, reached: bool) -> None:
    row = Row("LoRA forward", "64 x 64", "float32", 1, 1.0, "peft", theirs, 2.0)
    assert row.ratio == theirs
    assert ("not reached" in line(row)) != reached


def test_small_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from lorafam.bench.cpu import __main__ as module

    monkeypatch.setattr(module, "memory_rows", lambda sizes: iter(()))
    output = tmp_path / "rows.json"
    assert main(["--size", "64x128", "--dtype", "float32", "--seconds", "0", "--json", str(output)]) == 0
    rows = json.loads(output.read_text())["rows"]
    assert {row["other"] for row in rows} >= {"peft", "dense", "eager"}
    assert {row["tokens"] for row in rows} == {1, 16, 128, 512}
    assert "reached" in capsys.readouterr().out


def test_memory_of_a_layer() -> None:
    """PEFT holds the decoded weight, lorafam doesn't."""
    rows = list(memory_rows([(2048, 2048)]))
    assert all(row.theirs > 2048 * 2048 * 4 / 2**20 > row.ours for row in rows)
