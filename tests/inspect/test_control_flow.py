"""Loops of small programs written by hand."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("triton")
from lorafam.inspect.control_flow import Nest, loops, nests, reachable, read_ptx, read_sass


def sass(text: str) -> str:
    """Lines as nvdisasm prints them."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n".join(line if line.endswith(":") else f"        /*{at:04x}*/  {line} ;" for at, line in enumerate(lines))


def test_a_loop_with_its_guard_and_a_filler_after_the_end() -> None:
    program = read_sass(
        sass("""
        MOV R1, c[0x0][0x28]
        .L_x_0:
        IADD3 R1, R1, 0x1, RZ
        @!PT LDS RZ, [RZ]
        @!P0 BRA `(.L_x_0)
        EXIT
        .L_x_1:
        BRA `(.L_x_1)
        """)
    )
    assert loops(program) == [Counter({"IADD3": 1, "@!PT LDS": 1, "BRA": 1})]
    assert reachable(program) == Counter({"MOV": 1, "IADD3": 1, "@!PT LDS": 1, "BRA": 1, "EXIT": 1})


def test_code_moved_behind_the_end_belongs_to_its_loop() -> None:
    program = read_sass(
        sass("""
        .L_x_0:
        SYNCS.PHASECHK P1, [R1]
        @!P1 BRA `(.L_x_2)
        .L_x_1:
        IDP.4A.U8.U8 R4, R5, R6, R7
        BRA.U UP0, `(.L_x_0)
        EXIT
        .L_x_2:
        NANOSLEEP R2
        @P1 BRA `(.L_x_2)
        BRA `(.L_x_1)
        """)
    )
    (loop,) = loops(program, "IDP")
    assert loop == Counter({"BRA": 3, "BRA.U": 1, "SYNCS.PHASECHK": 1, "IDP.4A.U8.U8": 1, "NANOSLEEP": 1})
    # the wait is a loop too
    assert [found.total() for found in loops(program)] == [7, 2]


def test_of_nested_loops_the_innermost_that_holds_it() -> None:
    program = read_sass(
        sass("""
        .L_x_0:
        IDP.4A.U8.U8 R4, R5, R6, R7
        .L_x_1:
        FFMA R1, R1, R2, R3
        @P0 BRA P1, `(.L_x_1)
        @P2 BRA `(.L_x_0)
        EXIT
        """)
    )
    assert [loop["IDP.4A.U8.U8"] for loop in loops(program, "IDP")] == [1]
    assert loops(program, "FFMA") == [Counter({"FFMA": 1, "BRA": 1})]


def test_what_is_around_a_loop() -> None:
    program = read_sass(
        sass("""
        MOV R1, c[0x0][0x28]
        .L_x_0:
        BAR.SYNC
        .L_x_1:
        IDP.4A.U8.U8 R4, R5, R6, R7
        @P0 BRA `(.L_x_1)
        STS [R1], R2
        @P2 BRA `(.L_x_0)
        EXIT
        """)
    )
    inner = Counter({"IDP.4A.U8.U8": 1, "BRA": 1})
    around = Counter({"BAR.SYNC": 1, "STS": 1, "BRA": 1})
    assert nests(program, "IDP") == [Nest(inner, around)]
    assert nests(program) == [Nest(inner + around, Counter()), Nest(inner, around)]


def test_a_jump_into_the_middle_makes_no_loop_of_its_own() -> None:
    program = read_sass(
        sass("""
        @P0 BRA `(.L_x_1)
        .L_x_0:
        FADD R1, R1, R2
        .L_x_1:
        FMUL R1, R1, R2
        @P1 BRA `(.L_x_0)
        EXIT
        """)
    )
    assert loops(program) == []


def test_a_computed_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="computed address"):
        read_sass(sass("BRX R2 -0x10"))


def test_ptx_with_inline_assembly() -> None:
    program = read_ptx("""
    .visible .entry k(.param .u64 k_param_0)
    {
        mov.u32 %r1, 0; // .L
    $L__BB0_1:
        // begin inline asm
        { .reg .b32 a; dp4a.u32.u32 a, %r2, 0x80, %r3; ld.shared.b32 %r4, [a]; }
        // end inline asm
        @%p1 bra $L__BB0_1;
        ret;
    }
    """)
    assert loops(program, "dp4a") == [Counter({"dp4a.u32.u32": 1, "ld.shared.b32": 1, "bra": 1})]
