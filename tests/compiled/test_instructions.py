"""Instructions for each decoded weight in compiled code, and the tensor cores that the products use: bf16, blocks of
64, double quantisation undone in the loop. Run by `make compiled`.
"""

from __future__ import annotations

from typing import Any

import pytest
from lorafam.kernels.launch_rows import TRITON
from lorafam.kernels.launch_table import PACKED, launch_config

from tests.architectures import chosen
from tests.compiled.test_matrix import described

pytestmark = pytest.mark.compiled

NVIDIA = chosen(("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"))
# lane-instructions a weight: everything at 8 and 16 tokens, beside the tensor cores' own at 64 and 128
DECODE = {"sm_90": 4.5, "sm_100": 4.8}
DECODE_OTHERS = 5.8
TILES = {64: {"sm_90": 5.5, "sm_100": 6.0}, 128: {"sm_90": 7.5, "sm_100": 7.5}}
TILES_OTHERS = {64: 8.0, 128: 11.0}
# of dx, which decodes exactly: look-ups by the nibble, scale and rounding are 3.5 of them
GRADIENTS = {16: {"sm_120": 6.7}, 64: {}}
GRADIENTS_OTHERS = {16: 6.2, 64: 8.0}
DEQUANTIZE = 12.0
# the limits are those of Triton 3.9; what is more than so much worse before has rows of its own
BEFORE = 1.1 if TRITON < (3, 9) else 1.0
TENSOR_CORES = {"sm_90": "HGMMA", "sm_100": "UTCHMMA"}


def products(
    rows: list[dict[str, Any]], target: str, tokens: int, kernel: str = "lora_linear_kernel"
) -> list[dict[str, Any]]:
    """A product with 4-bit weights whose rows have whole blocks, with the tile that so many tokens get."""
    tile = launch_config(kernel.removesuffix("_kernel"), target, "bfloat16", tokens, PACKED)["BLOCK_M"]
    found = [
        row
        for row in rows
        if (row["kernel"], row["target"], row["dtype"]) == (kernel, target, "bfloat16")
        and (row["config"]["PACKED"] or row["config"].get("ONE_BLOCK"))
        and row["config"]["BLOCK_SIZE"] == 64
        and row["config"]["BLOCK_M"] == tile
    ]
    assert found, (target, tokens)
    return found


@pytest.mark.parametrize("tokens", [8, 16])
@pytest.mark.parametrize("target", NVIDIA)
def test_decode(rows: list[dict[str, Any]], target: str, tokens: int) -> None:
    for row in products(rows, target, tokens):
        print(described(row), row["per_weight"])
        assert row["per_weight"]["total"] <= DECODE.get(target, DECODE_OTHERS)


@pytest.mark.parametrize("tokens", [64, 128])
@pytest.mark.parametrize("target", NVIDIA)
def test_tiles(rows: list[dict[str, Any]], target: str, tokens: int) -> None:
    for row in products(rows, target, tokens):
        print(described(row), row["per_weight"])
        assert row["per_weight"]["beside_tensor_cores"] <= TILES[tokens].get(target, TILES_OTHERS[tokens])


@pytest.mark.parametrize("tokens", [16, 64])
@pytest.mark.parametrize("target", NVIDIA)
def test_dx(rows: list[dict[str, Any]], target: str, tokens: int) -> None:
    for row in products(rows, target, tokens, "lora_linear_grad_kernel"):
        print(described(row), row["per_weight"])
        limit = BEFORE * GRADIENTS[tokens].get(target, GRADIENTS_OTHERS[tokens])
        assert row["per_weight"]["beside_tensor_cores"] <= limit


@pytest.mark.parametrize("target", NVIDIA)
def test_the_staged_decode(rows: list[dict[str, Any]], target: str) -> None:
    """Few instructions, and 16 bytes at a time of the codes and of what they become."""
    found = [
        row
        for row in rows
        if (row["kernel"], row["target"], row["dtype"]) == ("nf4_dequantize_kernel", target, "bfloat16")
    ]
    assert found
    for row in found:
        print(described(row), row["per_weight"], row["global_accesses"])
        assert row["per_weight"]["total"] <= DEQUANTIZE
        threads, weights = 32 * row["config"]["num_warps"], row["per_weight"]["weights"]
        wide = {opcode: n for opcode, n in row["global_accesses"].items() if ".128" in opcode}
        bytes_ = {
            name: 16 * threads * sum(n for opcode, n in wide.items() if opcode.startswith(name))
            for name in ("LDG", "STG")
        }
        assert bytes_ == {"LDG": weights // 2, "STG": 2 * weights}
        assert {opcode for opcode in row["global_accesses"] if opcode.startswith("STG")} <= wide.keys()


def test_no_weight_is_decoded_twice(rows: list[dict[str, Any]]) -> None:
    decoding = [row for row in rows if row["per_weight"] is not None]
    assert {row["target"] for row in decoding} == set(NVIDIA)
    assert [described(row) for row in decoding if row["per_weight"]["redundancy"] != 1] == []


@pytest.mark.parametrize("target", NVIDIA)
def test_which_tensor_cores(rows: list[dict[str, Any]], target: str) -> None:
    """In the loop that decodes: those that the architecture has for a whole warp group or more, where it has them."""
    for tokens in (8, 16, 64, 128):
        for row in products(rows, target, tokens):
            decoding = [loop for loop in row["loops"] if any(opcode.startswith("IDP") for opcode in loop["ops"])]
            assert decoding
            for loop in decoding:
                opcodes = {opcode.partition(".")[0] for opcode in loop["ops"]}
                assert {name for name in opcodes if name.endswith("HMMA") or name == "HGMMA"} == {
                    TENSOR_CORES.get(target, "HMMA")
                }
