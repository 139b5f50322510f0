"""The adapter as the layer has it, and in x's dtype."""

import pytest
import torch
from lorafam.bench.case import CASES, make_case


@pytest.mark.parametrize("name", CASES)
def test_narrowed(name: str) -> None:
    case = make_case(name, 64, 2, torch.bfloat16, rank=4)
    wide, narrow = case.leaves(), case.narrowed().leaves()
    assert [*narrow] == [*wide]
    for leaf, value in zip(wide.values(), narrow.values(), strict=True):
        assert leaf.dtype == torch.float32
        assert leaf is not value
        assert torch.equal(value, leaf.bfloat16())
