"""Instructions of mixed precision give what PTX says once they are written out: ptxsim alone would misread them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lorafam.backends.triton_gpu.launch import simulator
from lorafam.backends.triton_gpu.mixed_precision import written_out
from tests.conftest import INTERPRETING, need_ptxsim

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")

KERNEL = """
.version 8.7
.target sm_120a
.address_size 64
.visible .entry mixed(.param .u64 .ptr .global .align 1 a_ptr, .param .u64 .ptr .global .align 1 c_ptr,
                      .param .u64 .ptr .global .align 1 d_ptr)
.reqntid 32
{{
  .reg .b16 %rs<2>;
  .reg .b32 %r<6>;
  .reg .b64 %rd<8>;
  ld.param.b64 %rd1, [a_ptr];
  ld.param.b64 %rd2, [c_ptr];
  ld.param.b64 %rd3, [d_ptr];
  mov.u32 %r1, %tid.x;
  mul.wide.u32 %rd4, %r1, 4;
  mul.wide.u32 %rd5, %r1, 2;
  add.s64 %rd6, %rd1, %rd5;
  ld.global.b16 %rs1, [%rd6];
  add.s64 %rd6, %rd2, %rd4;
  ld.global.b32 %r2, [%rd6];
  {instruction};
  add.s64 %rd7, %rd3, %rd4;
  st.global.b32 [%rd7], %r3;
  ret;
}}
"""


@pytest.mark.parametrize(
    ("instruction", "exact"),
    [
        ("add.rn.f32.f16 %r3, %rs1, %r2", lambda a, c: a + c),
        ("sub.rn.f32.f16 %r3, %rs1, %r2", lambda a, c: a - c),
        ("fma.rn.f32.f16 %r3, %rs1, %rs1, %r2", lambda a, c: a * a + c),
    ],
)
def test_results_are_those_of_the_wide_instruction(
    instruction: str, exact: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    need_ptxsim()
    a = np.linspace(-3, 3, 32).astype(np.float16)
    c = np.linspace(1e-3, 7, 32).astype(np.float32)
    d = np.zeros(32, np.float32)
    parameters = [("a_ptr", "*fp16", a), ("c_ptr", "*fp32", c), ("d_ptr", "*fp32", d)]
    text = written_out(KERNEL.format(instruction=instruction))
    assert ".f32.f16 %r3" not in text
    simulator().run_ptx(text, 1, parameters, threads=32)
    # one rounding, of a sum that fp64 holds exactly
    np.testing.assert_array_equal(d, exact(a.astype(np.float64), c.astype(np.float64)).astype(np.float32))


@pytest.mark.parametrize(
    "line", ["sub.rn.f32 %r1, %r2, %r3;", "cvt.f32.f16 %r1, %rs1;", "fma.rn.f16 %rs1, %rs2, %rs3, %rs4;"]
)
def test_everything_else_stays(line: str) -> None:
    assert written_out(line) == line
