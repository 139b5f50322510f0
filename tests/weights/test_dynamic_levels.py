"""The 8-bit dynamic levels."""

import pytest
import torch

from lorafam.weights.dynamic_levels import dynamic_levels

CPU = torch.device("cpu")


@pytest.mark.parametrize("signed", [True, False])
def test_equal_to_bitsandbytes(signed: bool) -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    expected = functional.create_dynamic_map(signed=signed)
    assert torch.equal(dynamic_levels(CPU, signed).view(torch.int32), expected.view(torch.int32))


def test_shape_and_range() -> None:
    levels = dynamic_levels(CPU)
    assert levels.shape == (256,)
    assert levels.dtype == torch.float32
    assert (levels.diff() > 0).all()
    assert levels[127] == 0
    assert levels[-1] == 1
    # symmetric but for the 1: -1 is missing
    assert torch.equal(levels[:127], -levels[128:-1].flip(0))


def test_one_table_a_device_that_autograd_can_save() -> None:
    dynamic_levels.cache_clear()
    with torch.inference_mode():
        levels = dynamic_levels(CPU)
    assert dynamic_levels(CPU) is levels
    assert not levels.is_inference()
