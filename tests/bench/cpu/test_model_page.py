"""docs/cpu.md is written from what was kept, a section a processor; a peak is one that this machine can reach."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lorafam.bench.cpu import model_page
from lorafam.bench.cpu.model_sizes import SIZES, TOKENS, VOCABULARY, Timed
from lorafam.bench.cpu.peaks import Peaks, peaks
from lorafam.bench.demo.plan import GENERATED


def rows(what: str, sizes: tuple[tuple[int, int], ...]) -> list[Timed]:
    """A forward takes 1 ms, with its backward 2, the other's twice and three times as long."""
    return [
        Timed(what, size, tokens, *timed)
        for size in sizes
        for tokens in TOKENS
        for timed in (("forward", 1e-3, 2e-3), ("train", 2e-3, 6e-3))
    ]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_page, "layers", lambda name, seconds: rows(name, SIZES))
    monkeypatch.setattr(model_page, "head", lambda seconds: rows("head", (VOCABULARY,)))
    monkeypatch.setattr(model_page, "peaks", lambda: Peaks(2 * 128 * 256 * 640 / 1e-3 * 4, 1e10))


@pytest.mark.usefixtures("measured")
def test_every_processor_keeps_its_section(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    pace: list[Any] = [0.5, 1.0, 2.0, 1.9, 2.1]
    (tmp_path / "measured.json").write_text(json.dumps({"pace": {"qlora": [pace, pace, pace, pace]}}))
    model_page.main(["--name", "Made-up 1"], tmp_path)
    model_page.main(["--name", "Made-up 2", "--demo", str(tmp_path)], tmp_path)
    text = (tmp_path / "docs" / "cpu.md").read_text()
    first, second = text.split("## Made-up ")[1:]
    assert "| 256 x 640 | 1.00 (2.0x) | 2.00 (3.0x) |" in first
    assert "25%" in next(line for line in first.splitlines() if line.startswith("| 256 x 640"))
    assert "a token" not in first
    assert "128 loss and dx" in first
    assert "| QLoRA | 0.500 / 1.000: 2.00x (1.90 to 2.10) |" in second
    # all tokens that are generated took what a step did
    assert f"{0.5 / GENERATED:.3f} / {1 / GENERATED:.3f}: 2.00x" in second


def test_a_demo_that_has_not_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        model_page.main(["--demo", str(tmp_path)], tmp_path)
    assert "expected a folder with measured.json" in capsys.readouterr().err


def test_peaks_are_a_processors() -> None:
    found = peaks()
    assert 1e9 < found.flops < 1e13
    assert 1e8 < found.bytes < 1e12
