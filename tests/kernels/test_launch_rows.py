"""What is no row of the launch table is refused, with what was expected."""

from __future__ import annotations

from typing import Any

import pytest
from lorafam.kernels.launch_rows import check_rows, of_triton
from lorafam.kernels.launch_table import AMD, INTERPRETER, NVIDIA, rows

ROW = {"tokens": 4, "K": 64, "dtypes": ["bfloat16"], "blocks": {"BLOCK_M": 16, "BLOCK_K": 64}, "num_warps": 2}


@pytest.mark.parametrize("machine", [NVIDIA, AMD, INTERPRETER])
def test_the_shipped_rows_are_well_formed(machine: str) -> None:
    check_rows(rows(machine), rows(machine))
    check_rows({"dropout": [ROW, {"tokens": 4, "shipped": True}]}, rows(machine))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ([], "rows: expected lists of rows by kernel"),
        ({"lora": []}, r"expected a kernel \(lora_linear, .*\), got 'lora'"),
        ({"dropout": {}}, "dropout: expected a list of rows, got {}"),
        ({"dropout": [ROW, 3]}, "dropout, row 2: expected an object, got 3"),
        ({"dropout": [{**ROW, "M": 4}]}, "dropout, row 1: expected keys of .*, got M"),
        ({"dropout": [{**ROW, "tokens": 0}]}, "tokens: expected a whole number of at least 1, got 0"),
        ({"dropout": [{**ROW, "rank": True}]}, "rank: expected a whole number of at least 1, got True"),
        ({"dropout": [{**ROW, "dtypes": "bfloat16"}]}, "dtypes: expected a list of names, got 'bfloat16'"),
        ({"dropout": [{"num_warps": 4}]}, "blocks: expected sizes of BLOCK_M, BLOCK_K, got None"),
        ({"dropout": [{"blocks": {"BLOCK_M": 16}}]}, "blocks: expected sizes of BLOCK_M, BLOCK_K, got"),
        ({"dropout": [{"blocks": {"BLOCK_M": 16, "BLOCK_K": 48}}]}, "BLOCK_K: expected a power of two, got 48"),
        ({"dropout": [{**ROW, "shipped": True}]}, "row 1: expected either shipped: true or a configuration"),
        ({"dropout": [{"shipped": 1}]}, "row 1: expected either shipped: true or a configuration"),
        ({"dropout": [{**ROW, "num_warps": 3}]}, "num_warps: expected a power of two, got 3"),
        ({"dropout": [{**ROW, "num_stages": "2"}]}, "num_stages: expected a whole number of at least 1, got '2'"),
    ],
)
def test_anything_else_is_refused(wrong: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        check_rows(wrong, rows(NVIDIA))


def test_a_row_of_some_tritons_only() -> None:
    entries = [{**ROW, "triton": "<3.8"}, {**ROW, "tokens": 8}, {**ROW, "triton": "<3.10"}]
    assert of_triton(entries, (3, 7)) == [ROW, {**ROW, "tokens": 8}, ROW]
    assert of_triton(entries, (3, 8)) == of_triton(entries, (3, 9)) == [{**ROW, "tokens": 8}, ROW]
    assert of_triton([{**ROW, "triton": "3.7"}], (3, 7)) == [ROW]
    assert not of_triton([{**ROW, "triton": "3.7"}], (3, 6))
    assert not of_triton([{**ROW, "triton": "3.7"}], (3, 8))
    assert of_triton(entries, (3, 10)) == of_triton(entries, (4, 0)) == [{**ROW, "tokens": 8}]


@pytest.mark.parametrize("condition", ["<3", "<=3.8", "<3.8.1", 3.8, None])
def test_no_other_condition_on_triton(condition: Any) -> None:
    with pytest.raises(ValueError, match="triton: expected a version"):
        of_triton([{**ROW, "triton": condition}], (3, 8))


def test_a_users_row_has_none() -> None:
    # the file it stands in is for one Triton
    with pytest.raises(ValueError, match=r"expected keys of .*, got triton"):
        check_rows({"dropout": [{**ROW, "triton": "<3.8"}]}, rows(NVIDIA))
