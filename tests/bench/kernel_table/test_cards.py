from __future__ import annotations

import pytest
from lorafam.bench.kernel_table.cards import CARDS, Card

# dense bf16 operations a clock of a multiprocessor: architecture white papers
OPERATIONS = {"sm_80": 2048, "sm_89": 512, "sm_90": 4096, "sm_100": 8192, "sm_120": 512}


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_peak_clock_and_multiprocessors_fit_each_other(card: Card) -> None:
    peak = OPERATIONS[card.architecture] * card.multiprocessors * card.clock
    assert card.tensor_flops == pytest.approx(peak, rel=2e-3)
