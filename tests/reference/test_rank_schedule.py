"""The budget step by step, as PEFT's; and which ranks stay within it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft.tuners.adalora.layer import RankAllocator

from lorafam.reference import budget, keep_mask

SCHEDULE = {
    "initial_ranks": 48,
    "target_ranks": 20,
    "total_steps": 50,
    "warmup_steps": 7,
    "final_steps": 11,
    "interval": 3,
}
PEFT_NAMES = {"total_steps": "total_step", "warmup_steps": "tinit", "final_steps": "tfinal", "interval": "deltaT"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"interval": 1},
        {"interval": 10},
        {"warmup_steps": 0},
        {"final_steps": 0},
        {"target_ranks": 48},
        {"target_ranks": 0},
        {"warmup_steps": 38},
    ],
)
def test_equals_peft_at_every_step(change: dict[str, int]) -> None:
    schedule = {**SCHEDULE, **change}
    allocator = SimpleNamespace(
        init_bgt=schedule["initial_ranks"],
        target_bgt=schedule["target_ranks"],
        peft_config=SimpleNamespace(**{PEFT_NAMES[name]: schedule[name] for name in PEFT_NAMES}),
    )
    for step in range(55):
        assert budget(step, **schedule) == RankAllocator.budget_schedule(allocator, step)


def test_falls_from_the_initial_to_the_target_ranks() -> None:
    ranks = [budget(step, **SCHEDULE).ranks for step in range(51)]
    assert ranks[:8] == [48] * 8
    assert ranks[39:] == [20] * 12
    assert ranks == sorted(ranks, reverse=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"warmup_steps": 39}, "warmup_steps, final_steps: expected"),
        ({"warmup_steps": -1}, "warmup_steps, final_steps: expected"),
        ({"final_steps": -1}, "warmup_steps, final_steps: expected"),
        ({"interval": 0}, "interval: expected at least 1, got 0"),
        ({"target_ranks": 49}, "target_ranks: expected 0 to 48"),
        ({"target_ranks": -1}, "target_ranks: expected 0 to 48"),
    ],
)
def test_impossible_schedules_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget(1, **{**SCHEDULE, **wrong})


def test_keeps_the_largest_scores() -> None:
    scores = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.4])
    assert keep_mask(scores, 2).tolist() == [False, False, True, False, True]
    assert keep_mask(scores, 4).tolist() == [True, False, True, True, True]


def test_the_whole_budget_keeps_all_and_none_keeps_nothing() -> None:
    scores = torch.tensor([0.0, 0.0, 0.5])
    assert keep_mask(scores, 3).all()
    assert not keep_mask(scores, 0).any()
    assert keep_mask(torch.empty(0), 0).shape == (0,)


def test_ties_with_the_threshold_are_pruned() -> None:
    assert keep_mask(torch.tensor([0.1, 0.2, 0.2, 0.2, 0.3]), 3).tolist() == [False, False, False, False, True]


def test_the_threshold_is_kthvalue_s_without_what_raises_in_deterministic_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    thresholds = [scores.kthvalue(200 - ranks).values for ranks in range(200)]
    # on a GPU it has no deterministic implementation, on a CPU it never raises
    monkeypatch.setattr(torch, "kthvalue", None)
    monkeypatch.setattr(torch.Tensor, "kthvalue", None)
    for ranks, threshold in enumerate(thresholds):
        assert torch.equal(keep_mask(scores, ranks), ~(scores <= threshold))


def test_a_budget_outside_the_scores_is_refused() -> None:
    for ranks in (-1, 4):
        with pytest.raises(ValueError, match=f"ranks: expected 0 to 3, the number of scores, got {ranks}"):
            keep_mask(torch.zeros(3), ranks)
