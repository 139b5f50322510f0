from __future__ import annotations

import pytest

pytest.importorskip("triton")
from lorafam.bench.kernel_table.variants import Variant, in_order, variant_of


def test_names() -> None:
    product = {"BLOCK_M": 16, "BLOCK_N": 128, "BLOCK_SIZE": 64, "PACKED": True}
    assert str(variant_of("lora_linear_kernel", product)) == "`lora_linear`, 4-bit W, packed, tiles of 16 tokens"
    assert variant_of("lora_linear_kernel", {**product, "PACKED": False}).read == "elements"
    assert variant_of("row_norm_kernel", {"BLOCK_N": 32, "BLOCK_SIZE": 64, "ONE_BLOCK": True}).read == "packed"
    assert str(variant_of("row_norm_kernel", {"BLOCK_N": 32, "BLOCK_SIZE": 0})) == "`row_norm`, dense W"
    assert str(variant_of("lora_project_kernel", {"BLOCK_M": 32})) == "`lora_project`"
    assert variant_of("nf4_dequantize_kernel", {"BLOCKS": 128, "BLOCK_SIZE": 64}) == Variant("nf4_dequantize", "", 0)


def test_order() -> None:
    variants = [Variant("dropout", "", 0), Variant("lora_linear", "packed", 16), Variant("lora_linear", "packed", 8)]
    assert in_order(variants) == variants[::-1]
