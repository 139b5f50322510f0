"""acc + a b on tensor cores without losing a digit of fp32 operands.

An fp32 value is the sum of three bf16 values (8 bits each of its 24), an fp16 value of two, a bf16 value of one. The
products of the pieces are exact in fp32, so a mixed product costs as many tensor-core products as there are pairs of
pieces; of two fp32 operands the three pairs below 2⁻²⁴ are left out. tf32 would keep 11 bits of 24, and an fp32 product
without tensor cores is slower than all six. The pieces are summed from zero, smallest first, and added to acc once: six
roundings at acc's size would be six times as many as eager's.

Infinities become NaN on the way (∞ − ∞).
"""

import triton
import triton.language as tl

from ..launch_rows import TRITON

if TRITON < (3, 8):

    @triton.constexpr_function
    def holds_tensor_memory(target):
        """Whether a `for` around such products holds the tensor memory of all six, 768 of 512 columns."""
        return target == "tcgen05"

else:

    @triton.constexpr_function
    def holds_tensor_memory(target):
        """Whether a `for` around such products holds the tensor memory of all six: not from Triton 3.8 on."""
        return False


_ROUND = tl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")


@triton.jit
def _high(value, TARGET: tl.constexpr):
    if TARGET == "mma":
        # impure, so that pieces are formed before they go to the operand's layout: fp32 would go there through shared
        # memory with two to four lanes a bank
        return tl.inline_asm_elementwise(_ROUND, "=r,r,r", [value], dtype=tl.bfloat16, is_pure=False, pack=2)
    else:
        return value.to(tl.bfloat16)


@triton.jit
def _rest(value, high):
    return value - high.to(tl.float32)


@triton.jit
def exact_dot(a, b, acc, TARGET: tl.constexpr):
    """acc fp32 [M, N] + a [M, K] b [K, N], each bf16, fp16 or fp32; equal narrow dtypes go to the cores as they are."""
    if TARGET == "interpreter":
        # the interpreter multiplies bf16 operands as integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif a.dtype == b.dtype and a.dtype != tl.float32:
        return tl.dot(a, b, acc)
    elif a.dtype == tl.bfloat16:
        wide = b.to(tl.float32)
        b1 = _high(wide, TARGET)
        wide = _rest(wide, b1)
        b2 = _high(wide, TARGET)
        b3 = _high(_rest(wide, b2), TARGET)
        part = tl.dot(a, b3)
        part = tl.dot(a, b2, part)
        return acc + tl.dot(a, b1, part)
    elif b.dtype == tl.bfloat16:
        wide = a.to(tl.float32)
        a1 = _high(wide, TARGET)
        wide = _rest(wide, a1)
        a2 = _high(wide, TARGET)
        a3 = _high(_rest(wide, a2), TARGET)
        part = tl.dot(a3, b)
        part = tl.dot(a2, b, part)
        return acc + tl.dot(a1, b, part)
    else:
        wide_a, wide_b = a.to(tl.float32), b.to(tl.float32)
        a1, b1 = _high(wide_a, TARGET), _high(wide_b, TARGET)
        wide_a, wide_b = _rest(wide_a, a1), _rest(wide_b, b1)
        a2, b2 = _high(wide_a, TARGET), _high(wide_b, TARGET)
        a3, b3 = _high(_rest(wide_a, a2), TARGET), _high(_rest(wide_b, b2), TARGET)
        part = tl.dot(a1, b3)
        part = tl.dot(a3, b1, part)
        part = tl.dot(a2, b2, part)
        part = tl.dot(a1, b2, part)
        part = tl.dot(a2, b1, part)
        return acc + tl.dot(a1, b1, part)
