"""What the demo promises: what is wrong fails, a pace that falls short is told."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest
from lorafam.bench.demo.pace import Pace, Paces, median_within
from lorafam.bench.demo.plan import PAIRS, RUNS
from lorafam.bench.demo.verdict import FAILED, OK, SLOWER, claims


def _claims(ratio: float = 1.5, fall: float = 0.5, memory: int = 1, problem: str = "") -> list[tuple[str, str]]:
    summaries: dict[str, Any] = {
        run.key: {
            "title": run.title,
            "fall": fall,
            "fall_error": 0.1,
            "memory": memory if run.library == "lorafam" else 1,
        }
        for run in RUNS
    }
    pace = Pace(1.0, ratio, ratio, ratio - 0.1, ratio + 0.1)
    paces = {ours: Paces(pace, pace, pace, pace) for ours, _ in PAIRS}
    return claims(summaries, paces, {"qlora": problem})


def _states(rows: list[tuple[str, str]]) -> set[str]:
    return {state for state, _ in rows}


def test_all_well() -> None:
    rows = _claims()
    assert _states(rows) == {OK}
    assert any("QLoRA: a step 1.00 s, PEFT 1.50 s: 1.50x (1.40 to 1.60)" in seen for _, seen in rows)


def test_a_pace_that_falls_short_is_no_failure() -> None:
    rows = _claims(ratio=0.9)
    assert _states(rows) == {OK, SLOWER}
    assert sum(state == SLOWER for state, _ in rows) == 4 * len(PAIRS)


@pytest.mark.parametrize("wrong", [{"fall": 0.1}, {"memory": 1 << 30}, {"problem": "logits differ"}])
def test_what_is_wrong_fails(wrong: dict[str, Any]) -> None:
    assert FAILED in _states(_claims(**wrong))


def test_the_median_lies_within_its_bounds() -> None:
    draw, inside = random.Random(0), 0
    for _ in range(1000):
        median, least, most = median_within([draw.gauss(0, 1) for _ in range(12)])
        assert least <= median <= most
        inside += least <= 0 <= most
    assert inside >= 900
    assert median_within([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert median_within([5.0]) == (5.0, 5.0, 5.0)
    assert statistics.median(range(12)) == median_within([float(i) for i in range(12)])[0]
