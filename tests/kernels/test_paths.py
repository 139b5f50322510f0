"""Which way a product over a 4-bit weight runs: the shipped rows, and a user's before them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from lorafam.kernels.paths import CUBLAS, FUSED, STAGED, TRITON, Route, path_of, prefer_paths, preferred_paths

ROW = {"path": STAGED, "product": TRITON}


@pytest.fixture(autouse=True)
def _no_rows_of_ones_own() -> Iterator[None]:
    prefer_paths("sm_90", {})
    yield
    prefer_paths("sm_90", {})


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100", "gfx942", "interpreter"])
@pytest.mark.parametrize("op", ["lora_linear", "lora_linear_grad"])
def test_few_tokens_are_fused_and_many_staged(op: str, architecture: str) -> None:
    assert path_of(op, architecture, 1) == Route(FUSED)
    many = path_of(op, architecture, 5000)
    assert many.path == STAGED
    assert many.product in (CUBLAS, TRITON)
    assert path_of("dropout", architecture, 5000) == Route(FUSED)


def test_a_row_of_ones_own_goes_first_where_it_fits() -> None:
    rows = [{"tokens": 8, "N": 64, "K": 64, "shipped": True}, {"tokens": 8, "N": 64, "K": 128, **ROW}]
    prefer_paths("sm_90", {"lora_linear": rows})
    assert path_of("lora_linear", "sm_90", 8, 64, 128) == Route(STAGED, TRITON)
    fused = [("lora_linear", 9, 64, 128), ("lora_linear", 8, 65, 128), ("lora_linear", 8, 64, 129)]
    for op, *sizes in [*fused, ("lora_linear", 8, 64, 64), ("lora_linear_grad", 8, 64, 128)]:
        assert path_of(op, "sm_90", *sizes) == Route(FUSED)
    assert path_of("lora_linear", "sm_80", 8, 64, 128) == Route(FUSED)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ([], "paths: expected lists of rows by op, got"),
        ({"dropout": []}, r"paths: expected an op \(lora_linear, lora_linear_grad, row_norm\), got 'dropout'"),
        ({"lora_linear": ROW}, "paths of lora_linear: expected a list of rows"),
        (
            {"lora_linear": [ROW, {**ROW, "N": 0}]},
            "paths of lora_linear, row 2: N: expected a whole number of at least",
        ),
        ({"lora_linear": [{**ROW, "dtypes": ["float16"]}]}, "expected keys of .*, got dtypes"),
        ({"lora_linear": [{"path": STAGED}]}, "row 1: expected one of"),
        ({"lora_linear": [{"path": "quick"}]}, "row 1: expected one of"),
        ({"lora_linear": [{"path": FUSED, "shipped": True}]}, "row 1: expected one of"),
    ],
)
def test_a_malformed_row_changes_nothing(wrong: Any, told: str) -> None:
    good = {"lora_linear": [ROW]}
    prefer_paths("sm_90", good)
    with pytest.raises(ValueError, match=told):
        prefer_paths("sm_90", wrong)
    assert preferred_paths("sm_90") == good
    assert path_of("lora_linear", "sm_90", 1) == Route(STAGED, TRITON)
