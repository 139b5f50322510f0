"""4-bit codes to numbers: block scales with double quantisation undone, and two decoders of a tile of codes.

    w = level[code] · absmax of its block          absmax = nested_level[absmax_code] · nested_absmax + offset

The high nibble is the even element. Where the scale can wait until after the product, levels are decoded alone, rounded
as gain · level to the operand's dtype, and the scale is divided by the gain: then their rounding errors cancel over
normally distributed weights (`nf4_gain`). Two decoders do that:

    portable    a look-up in memory for each code
    PTX         a look-up of four codes in registers (PRMT) for each of the two bytes of a level, one LOP3 to choose the
                half of the table; high and low nibbles stay apart, so nothing is interleaved
"""

import triton
import triton.language as tl

# $0, $1 even and $2, $3 odd elements, two 16-bit levels each; $4 four bytes of codes; $5, $9, … the table's eight
# words, each of which comes four times because four bytes are decoded at once: low bytes of the levels, then high bytes
_HALF = """
prmt.b32 a, $5, $9, {index};   prmt.b32 b, $13, $17, {index};  prmt.b32 top, shifted, $4, {pick};
lop3.b32 low, a, b, top, 0xd8;
prmt.b32 a, $21, $25, {index}; prmt.b32 b, $29, $33, {index};  lop3.b32 high, a, b, top, 0xd8;
prmt.b32 ${even}, low, high, 0x7351;  prmt.b32 ${odd}, low, high, 0x6240;
"""
_ASM = tl.constexpr(
    "{ .reg .b32 shifted, first, second, top, a, b, low, high;"
    " shl.b32 shifted, $4, 4; and.b32 first, $4, 0x77777777; shr.u32 second, first, 16;"
    + _HALF.format(index="first", pick="0xd9c8", even=0, odd=2)
    + _HALF.format(index="second", pick="0xfbea", even=1, odd=3)
    + "}"
)
_CONSTRAINTS = tl.constexpr("=&r,=&r,=&r,=&r,r," + ",".join(["r"] * 32))
_LANE = tl.constexpr("{ .reg .u32 lane; mov.u32 lane, %laneid; and.b32 lane, lane, 1; shl.b32 $0, lane, 3; }")


@triton.jit
def block_scale(block, scales, mask):
    """absmax fp32 of blocks, [...] like `block`; 0 where `mask` is false.

    scales = (absmax, nested_absmax, nested_levels, offset): fp32 absmax and three times None, or under double
    quantisation uint8 codes, fp32, fp32 [256], fp32 [1]. Product and sum round one after the other, as bitsandbytes'.
    """
    if scales[1] is None:
        return tl.load(scales[0] + block, mask=mask, other=0.0)
    else:
        level = tl.load(scales[2] + tl.load(scales[0] + block, mask=mask, other=0).to(tl.int32))
        absmax = level * tl.load(scales[1] + block // 256, mask=mask, other=0.0) + tl.load(scales[3])
        return tl.where(mask, absmax, 0.0)


@triton.jit
def load_table(table_ptr, TARGET: tl.constexpr):
    """What `decode_levels` needs of the table, once before the loop.

    PTX: int32 [16], eight words twice. Two lanes read two copies, or else the compiler would see a uniform value, keep
    it in uniform registers and move it back before each look-up.
    """
    if TARGET == "nvidia":
        lane = tl.inline_asm_elementwise(_LANE, "=r", [], dtype=tl.int32, is_pure=True, pack=1)
        words = table_ptr + lane
        return (
            tl.load(words),
            tl.load(words + 1),
            tl.load(words + 2),
            tl.load(words + 3),
            tl.load(words + 4),
            tl.load(words + 5),
            tl.load(words + 6),
            tl.load(words + 7),
        )
    else:
        return (table_ptr,)


@triton.jit
def decode_levels(codes, table, DTYPE: tl.constexpr, TARGET: tl.constexpr):
    """(even, odd): gain · level of the high and of the low nibbles of codes uint8 [...], in DTYPE (bf16 or fp16)."""
    if TARGET == "nvidia":
        words = [codes, table[0], table[1], table[2], table[3], table[4], table[5], table[6], table[7]]
        # a dtype that comes as a constexpr isn't taken
        if tl.bfloat16 == DTYPE:
            return tl.inline_asm_elementwise(
                _ASM, _CONSTRAINTS, words, dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
            )
        else:
            return tl.inline_asm_elementwise(
                _ASM, _CONSTRAINTS, words, dtype=(tl.float16, tl.float16), is_pure=True, pack=4
            )
    else:
        codes = codes.to(tl.int32)
        return tl.load(table[0] + (codes >> 4)).to(DTYPE), tl.load(table[0] + (codes & 15)).to(DTYPE)
