"""Rows of formats that are to come can be written, and those that are there say what they are."""

from __future__ import annotations

import pytest
from lorafam.kernels.formats import FORMATS, QUANT_TYPES, Format, format_of

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1_LEVELS = E2M1 + tuple(-level for level in E2M1)
TO_COME = [
    Format("mxfp4", 4, E2M1_LEVELS, ((1, 32),), scale_dtype="e8m0"),
    Format("nvfp4", 4, E2M1_LEVELS, ((1, 16),), scale_dtype="e4m3", second_scale="fp32"),
    Format("fp8", 8, (), ((128, 128),), code_dtype="e4m3"),
    Format("int4", 4, tuple(map(float, range(16))), ((1, 128),), scale_dtype="fp16", zero_point=True),
]


@pytest.mark.parametrize("row", [*FORMATS, *TO_COME], ids=lambda row: row.name)
def test_a_row_is_whole(row: Format) -> None:
    assert bool(row.levels) != bool(row.code_dtype)
    assert not row.levels or len(row.levels) == 2**row.bits
    assert row.blocks
    assert row.gain("bf16") > 0


def test_by_name() -> None:
    assert [format_of(name) for name in QUANT_TYPES] == list(FORMATS)
    with pytest.raises(ValueError, match=r"quant_type: expected one of \('nf4', 'fp4'.*got 'nf5'"):
        format_of("nf5")
