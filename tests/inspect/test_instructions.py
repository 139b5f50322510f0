"""Instructions a weight: of loops written by hand, and the look-ups that run in a launch against those that must."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from lorafam.inspect.instructions import global_accesses, per_weight
from tests.conftest import INTERPRETING, need_ptxsim
from tests.inspect.test_control_flow import sass

CONFIG = {"BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 1}
BYTES, NIBBLES = 8192, 512


def ptx(look_ups: int, table: int, loop: bool = True) -> str:
    body = "dp4a.u32.u32 a, %r2, 0x80, %r3; " * look_ups
    return f"""
    .visible .entry k(.param .u64 k_param_0)
    {{
        {{ .reg .b32 base; .shared .align 16 .b32 levels[{table}]; mov.u32 base, levels; }}
    $L__BB0_1:
        {{ .reg .b32 a; {body} }}
        {"@%p1 bra $L__BB0_1;" if loop else ""}
        ret;
    }}
    """


def decoding(look_ups: int, other: str = "", loop: bool = True) -> str:
    lines = ["MOV R1, c[0x0][0x28]", ".L_x_0:", *["IDP.4A.U8.U8 R4, R5, R6, R7"] * look_ups, *other.split(";")]
    lines += ["@P0 BRA `(.L_x_0)"] if loop else []
    return sass("\n".join(line for line in [*lines, "EXIT"] if line))


def test_of_one_warp() -> None:
    """256 weights of a turn: 4 look-ups of 32 lanes, two weights each."""
    other = "HMMA.16816.F32.BF16 R1, R2, R3, R4; LDS R1, [R2]; FFMA R1, R2, R3, R4; HFMA2.MMA R1, R2, R3, R4"
    found = per_weight(decoding(4, other), ptx(4, BYTES), CONFIG, "sm_90")
    assert found is not None
    assert found.weights == 256
    assert found.in_a_loop
    assert found.redundancy == 1
    turn = 32 / 256
    assert found.total == 9 * turn
    assert found.beside_tensor_cores == 8 * turn
    assert (found.alu, found.multiply, found.shared) == (0, 4 * turn, turn)
    assert found.half_rate == 4 * turn


def test_fp32_is_half_rate_on_sm_80_alone() -> None:
    other = "FFMA R1, R2, R3, R4; LOP3.LUT R1, R2, R3, R4"
    found = {target: per_weight(decoding(4, other), ptx(4, BYTES), CONFIG, target) for target in ("sm_80", "sm_86")}
    assert [one and one.multiply * 8 for one in found.values()] == [5, 4]
    assert [one and one.alu * 8 for one in found.values()] == [1, 1]


def test_an_unrolled_loop_covers_more() -> None:
    once, twice = (per_weight(decoding(4 * n), ptx(4, BYTES), CONFIG, "sm_90") for n in (1, 2))
    assert once is not None
    assert twice is not None
    assert twice.weights == 2 * once.weights
    assert twice.redundancy == 1
    assert twice.total == 9 * 32 / 512


def test_warps_that_decode_the_same_weights_count_fully() -> None:
    found = per_weight(decoding(4), ptx(4, BYTES), {**CONFIG, "num_warps": 2}, "sm_90")
    assert found is not None
    assert found.redundancy == 2
    assert found.weights == 256
    assert found.total == 5 * 64 / 256


def test_look_ups_by_the_nibble_give_a_weight_each() -> None:
    found = per_weight(decoding(8), ptx(8, NIBBLES), CONFIG, "sm_90")
    assert found is not None
    assert found.redundancy == 1


def test_without_a_loop_the_whole_program() -> None:
    config = {"BLOCKS": 2, "BLOCK_SIZE": 64, "num_warps": 1}
    found = per_weight(decoding(4, loop=False), ptx(4, NIBBLES, loop=False), config, "sm_90")
    assert found is not None
    assert not found.in_a_loop
    assert (found.weights, found.redundancy) == (128, 1)
    assert found.total == 6 * 32 / 128


def test_the_worst_of_several_loops() -> None:
    two = decoding(4) + "\n" + decoding(4, "FADD R1, R2, R3").replace("L_x_0", "L_x_1")
    found = per_weight(two.replace("EXIT", "NOP", 1), ptx(4, BYTES), CONFIG, "sm_90")
    assert found is not None
    assert found.total == 6 * 32 / 256


def test_what_is_done_for_each_span_of_blocks_is_added() -> None:
    listing = sass("""
    .L_x_1:
    BAR.SYNC
    LDG.E.128 R1, [R2]
    .L_x_0:
    IDP.4A.U8.U8 R4, R5, R6, R7
    IDP.4A.U8.U8 R4, R5, R6, R7
    IDP.4A.U8.U8 R4, R5, R6, R7
    IDP.4A.U8.U8 R4, R5, R6, R7
    @P0 BRA `(.L_x_0)
    @P1 BRA `(.L_x_1)
    EXIT
    """)
    config = {**CONFIG, "PACKED": True, "SPAN": 4, "BLOCK_SIZE": 64}
    found = per_weight(listing, ptx(4, BYTES), config, "sm_90")
    assert found is not None
    assert found.around == 3 * 32 / (16 * 4 * 64)
    assert found.total == 5 * 32 / 256 + found.around
    assert found.beside_tensor_cores == found.total
    assert found.weights == 256


def test_what_does_not_fit_is_refused() -> None:
    assert per_weight(decoding(0), ptx(0, BYTES), CONFIG, "sm_90") is None
    with pytest.raises(ValueError, match="of its tile"):
        per_weight(decoding(2), ptx(2, BYTES), CONFIG, "sm_90")
    with pytest.raises(ValueError, match="a whole number expected"):
        per_weight(decoding(6), ptx(4, BYTES), CONFIG, "sm_90")
    with pytest.raises(ValueError, match="16 or 256 rows"):
        per_weight(decoding(4), ptx(4, 64), CONFIG, "sm_90")
    with pytest.raises(ValueError, match="not in a loop"):
        per_weight(decoding(4, loop=False), ptx(4, BYTES), CONFIG, "sm_90")


def test_global_accesses() -> None:
    listing = decoding(4, "LDG.E.128 R1, [R2]; LDG.E.128 R3, [R4]; STG.E.U16 [R2], R3; LDS R1, [R2]")
    assert global_accesses(listing) == {"LDG.E.128": 2, "STG.E.U16": 1}


@pytest.mark.simulated
@pytest.mark.skipif(INTERPRETING, reason="of compiled code only")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
@pytest.mark.parametrize("tokens", [1, 16, 64, 128, 130])
def test_each_weight_is_looked_up_once_for_each_tile_of_tokens(architecture: str, tokens: int) -> None:
    """The lanes that execute a dot product of bytes while a launch runs, against weights / 2 · tiles of M."""
    need_ptxsim()
    from lorafam.backends.triton_gpu.lora_linear import lora_linear
    from lorafam.inspect.every_kernel import configuration
    from lorafam.inspect.traffic import count

    N, K = 256, 512
    x, blocks = torch.zeros(tokens, K, dtype=torch.bfloat16), N * K // 64
    scales = [torch.zeros(blocks, dtype=torch.uint8), torch.ones(blocks // 256), torch.ones(256), torch.zeros(())]
    codes = torch.zeros(N * K // 2, dtype=torch.uint8)
    (counted,) = count(architecture, lambda: lora_linear(x, codes, scales, [N, K, 64, 0, 256], None, None, None, None))
    tiles_m = -(-tokens // configuration(counted.launch.kernel)["BLOCK_M"])
    executed = sum(n for opcode, n in counted.traffic.executed.items() if opcode.startswith("dp4a"))
    assert executed * 32 == N * K // 2 * tiles_m
