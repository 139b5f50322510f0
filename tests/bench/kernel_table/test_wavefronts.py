from __future__ import annotations

import pytest

pytest.importorskip("triton")
from lorafam.bench.kernel_table.wavefronts import of_product


@pytest.mark.simulated
@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_look_ups_and_operands(target: str) -> None:
    """A look-up of 32 lanes, 64 weights, is one wavefront; codes and x take less than that again each."""
    few, many = (of_product(target, tokens) for tokens in (1, 64))
    assert 1 / 64 < few < 2.5 / 64
    assert few < many < 6 / 64
