from __future__ import annotations

import pytest

pytest.importorskip("triton")
from lorafam.bench.kernel_table.__main__ import _cell, _modelled, simulated_target
from lorafam.bench.kernel_table.cards import CARDS
from lorafam.bench.kernel_table.times import Work

WORK = Work(bytes=0, weights=1e6, flops=0, programs=CARDS[0].multiprocessors)


def test_whose_code_is_run_in_place_of_a_cards() -> None:
    found = {card.name: simulated_target(card) for card in CARDS}
    assert found == {
        "A100 80GB": "sm_80",
        "H100": "sm_90",
        "H200": "sm_90",
        "B200": None,
        "RTX 4090": "sm_80",
        "RTX 5090": "sm_80",
    }


def test_a_cell_has_microseconds_and_what_binds() -> None:
    rows = {"sm_80": [{"per_weight": {"total": 2.0, "alu": 0.5, "multiply": 1.5}}]}
    assert _cell(_modelled(CARDS[0], WORK, rows, None)) == "0.2 half rate"
    parts = WORK._replace(parts=2.039e6)
    assert _cell(_modelled(CARDS[0], parts, rows, None)) == "0.2 to 1.0 half rate"
    with pytest.raises(ValueError, match="sm_80"):
        _modelled(CARDS[0], WORK, {"sm_80": [{"per_weight": None}]}, None)
