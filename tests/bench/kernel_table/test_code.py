"""Tables of rows made up here."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")
from lorafam.bench.kernel_table.code import TARGETS, by_variant, instructions, resources, worst
from lorafam.bench.kernel_table.variants import Variant


def row(kernel: str, target: str, dtype: str = "bfloat16", total: float | None = None, registers: int = 40) -> dict:
    decoded = {"total": total, "beside_tensor_cores": 2.0, "alu": 0.5, "multiply": 0.75}
    return {
        "kernel": f"{kernel}_kernel",
        "target": target,
        "dtype": dtype,
        "config": {"BLOCK_M": 8, "BLOCK_N": 128, "BLOCK_SIZE": 64, "PACKED": True} if kernel == "lora_linear" else {},
        "registers": registers,
        "shared_bytes": 1536,
        "per_weight": None if total is None else decoded,
    }


ROWS = [
    row("lora_linear", "sm_80", total=2.5),
    row("lora_linear", "sm_80", total=3.0, registers=50),
    row("lora_linear", "sm_80", "float16", total=9.0, registers=99),
    row("lora_linear", "gfx942"),
    row("adalora_scores", "sm_120", "float32"),
    row("dropout", "sm_90", "float32"),
    row("dropout", "sm_90"),
]
PRODUCT = Variant("lora_linear", "packed", 8)


def cells(lines: list[str], kernel: str) -> dict[str, Any]:
    (line,) = (line for line in lines if line.startswith(f"| `{kernel}`"))
    return dict(zip(TARGETS, (cell.strip() for cell in line.split("|")[2:-1]), strict=True))


def test_bf16_or_the_only_dtype() -> None:
    found = by_variant(ROWS)
    assert [str(variant) for variant in found] == [str(PRODUCT), "`adalora_scores`", "`dropout`"]
    assert len(found[PRODUCT]["sm_80"]) == 2
    assert [one["dtype"] for one in found[Variant("dropout", "", 0)]["sm_90"]] == ["bfloat16"]


def test_the_most_of_the_specialisations() -> None:
    assert cells(resources(ROWS), "lora_linear") == {**dict.fromkeys(TARGETS, ""), "sm_80": "50, 1.5"}
    assert cells(instructions(ROWS), "lora_linear")["sm_80"] == "3.00, 2.00, 0.75"
    assert worst([ROWS[0], ROWS[1]]) == ROWS[1]["per_weight"]
    assert worst([]) is None


def test_only_what_decodes_has_instructions_a_weight() -> None:
    assert len(instructions(ROWS)) == 3
