"""Every kernel, compiled for every architecture in every shipped configuration: no spills, nothing that a driver
refuses to launch, tensor-core instructions in every product. Run by `make compiled`.
"""

from __future__ import annotations

from typing import Any

import pytest

from lorafam.inspect.every_kernel import ARCHITECTURES
from tests.architectures import chosen
from tests.kernels.sources import defined_kernels

pytestmark = pytest.mark.compiled

PRODUCTS = {
    "dense_linear_kernel",
    "lora_linear_kernel",
    "lora_linear_grad_kernel",
    "lora_linear_group_kernel",
    "lora_project_kernel",
    "lora_factors_grad_kernel",
    "lora_grad_pass_kernel",
    "row_norm_kernel",
    "adalora_penalty_kernel",
    "adalora_penalty_grad_kernel",
}
KERNELS = PRODUCTS | {
    "absmax_quantize_kernel",
    "adalora_importance_kernel",
    "adalora_scores_kernel",
    "dropout_kernel",
    "nf4_dequantize_kernel",
    "nf4_quantize_kernel",
}


def described(row: dict[str, Any]) -> str:
    return f"{row['target']} {row['kernel']} {row['dtype']} {row['config']}"


def test_everything_compiles(dumped: list[dict[str, Any]]) -> None:
    from lorafam.inspect.every_kernel import failures

    assert failures(dumped) == []


def test_every_kernel_on_every_architecture(rows: list[dict[str, Any]]) -> None:
    for target in chosen(ARCHITECTURES):
        assert {row["kernel"] for row in rows if row["target"] == target} == KERNELS, target


def test_no_kernel_is_left_out() -> None:
    assert defined_kernels() == KERNELS


def test_no_spills(rows: list[dict[str, Any]]) -> None:
    assert [described(row) for row in rows if row["spill_instructions"]] == []


def test_a_driver_launches_them(rows: list[dict[str, Any]]) -> None:
    assert [f"{described(row)}: {row['refused']}" for row in rows if row["refused"]] == []


def test_tensor_cores(rows: list[dict[str, Any]]) -> None:
    without = [described(row) for row in rows if row["kernel"] in PRODUCTS and not row["tensor_core_instructions"]]
    # ‖w‖² alone has no product
    assert [line for line in without if "row_norm" not in line] == []
