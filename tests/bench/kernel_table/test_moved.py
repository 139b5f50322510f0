"""Bytes of a launch made up here."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")
from lorafam.bench.kernel_table.moved import least_bytes, moved_bytes, table
from lorafam.bench.kernel_table.variants import Variant

from lorafam.backends.triton_gpu.launch import Launch
from lorafam.inspect.traffic import Counted, Moved, Shared, Traffic


def counted(conflicts: int) -> Counted:
    x = torch.zeros(64)
    arguments = {"x_ptr": x, "again_ptr": x, "y_ptr": torch.zeros(8), "parts_ptr": torch.zeros(1000), "M": 8}
    traffic = Traffic(
        {"x_ptr": Moved(99, 18, 9)},
        {"y_ptr": Moved(1, 1, 1), "parts_ptr": Moved(2, 2, 2)},
        Counter(),
        [Shared("ld.shared", "", 90, conflicts), Shared("wgmma", "", 100, 50), Shared("st.shared", "", 10, 0)],
    )
    return Counted(Launch(None, (1,), arguments, (), None), traffic)


def test_an_operand_counts_once_and_parts_only_as_moved() -> None:
    one = counted(5)
    assert least_bytes(one) == 64 * 4 + 8 * 4
    assert moved_bytes(one, "distinct") == 32 * 12
    assert moved_bytes(one, "fetched") == 32 * 21


def test_the_worst_launch_without_what_tensor_cores_read() -> None:
    lines = table({"sm_80": {Variant("dropout", "", 0): [counted(5), counted(10)]}, "sm_90": {}})
    assert lines[2] == "| `dropout` | 1.33, 2.33, 10.0% |  |"
