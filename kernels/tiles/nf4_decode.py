"""4-bit codes to numbers: block scales with double quantisation undone, and decoders of a tile of codes.

    w = level[code] · absmax of its block          absmax = nested_level[absmax_code] · nested_absmax + offset

`decode_levels`: where the scale can wait until after the product, levels are decoded alone, rounded as gain · level to
the operand's dtype, and the scale is divided by the gain: then their rounding errors cancel over normally distributed
weights (`formats`). `decode_exact`: levels in fp32. Each in two ways:

    portable    a look-up in memory for each code
    PTX         a look-up in shared memory, in a table that stands there once for each lane: lane l reads word 32 i + l,
                so no two lanes meet in a bank, and a dot product of bytes (dp4a: the index times 128 plus the lane's
                base) is the whole address. Rounded levels by the byte, two at once (one instruction a weight, half of
                them loads), exact ones by the nibble
"""

import triton
import triton.language as tl

# static, beside the shared memory that Triton allocates: a row of 32 words for each byte, for each nibble
_BYTES = tl.constexpr(
    "{ .reg .b32 base; .shared .align 16 .b32 levels[8192]; mov.u32 base, levels; mov.u32 $0, base; }"
)
_NIBBLES = tl.constexpr(
    "{ .reg .b32 base; .shared .align 16 .b32 levels[512]; mov.u32 base, levels; mov.u32 $0, base; }"
)
_FILL = tl.constexpr("{ st.shared.v4.b32 [$1], {$2, $2, $2, $2}; mov.u32 $0, 0; }")
_LANE = tl.constexpr("{ .reg .b32 lane; mov.u32 lane, %laneid; shl.b32 lane, lane, 2; add.u32 $0, lane, $1; }")
# $4: four bytes of codes, $5: the lane's base, once for each of the four
_LOOK_UP = tl.constexpr(
    "{ .reg .b32 a, b, c, d;"
    " dp4a.u32.u32 a, $4, 0x80, $5; dp4a.u32.u32 b, $4, 0x8000, $5;"
    " dp4a.u32.u32 c, $4, 0x800000, $5; dp4a.u32.u32 d, $4, 0x80000000, $5;"
    " ld.shared.b32 $0, [a]; ld.shared.b32 $1, [b]; ld.shared.b32 $2, [c]; ld.shared.b32 $3, [d]; }"
)
# $0 to $3 high nibbles, $4 to $7 low ones; $8: four bytes of codes, $9: the lane's base
_LOOK_UP_EXACT = tl.constexpr(
    "{ .reg .b32 high, low, a, b, c, d;"
    " shr.u32 high, $8, 4; and.b32 high, high, 0x0f0f0f0f; and.b32 low, $8, 0x0f0f0f0f;"
    " dp4a.u32.u32 a, high, 0x80, $9; dp4a.u32.u32 b, high, 0x8000, $9;"
    " dp4a.u32.u32 c, high, 0x800000, $9; dp4a.u32.u32 d, high, 0x80000000, $9;"
    " ld.shared.f32 $0, [a]; ld.shared.f32 $1, [b]; ld.shared.f32 $2, [c]; ld.shared.f32 $3, [d];"
    " dp4a.u32.u32 a, low, 0x80, $9; dp4a.u32.u32 b, low, 0x8000, $9;"
    " dp4a.u32.u32 c, low, 0x800000, $9; dp4a.u32.u32 d, low, 0x80000000, $9;"
    " ld.shared.f32 $4, [a]; ld.shared.f32 $5, [b]; ld.shared.f32 $6, [c]; ld.shared.f32 $7, [d]; }"
)


@triton.constexpr_function
def runs_ptx(target):
    """Whether inline PTX runs on machines with these tensor cores (`launch_config`)."""
    return target in ("mma", "wgmma", "tcgen05")


@triton.jit
def block_scale(block, scales, mask):
    """absmax fp32 of blocks, [...] like `block`; 0 where `mask` is false; None masks nothing.

    scales = (absmax, nested_absmax, nested_levels, offset): fp32 absmax and three times None, or under double
    quantisation uint8 codes, fp32, fp32 [256], fp32 [1]. Product and sum round one after the other, as bitsandbytes'.
    """
    if scales[1] is None:
        return tl.load(scales[0] + block, mask=mask, other=None if mask is None else 0.0)
    elif mask is None:
        level = tl.load(scales[2] + tl.load(scales[0] + block).to(tl.int32))
        return level * tl.load(scales[1] + block // 256) + tl.load(scales[3])
    else:
        level = tl.load(scales[2] + tl.load(scales[0] + block, mask=mask, other=0).to(tl.int32))
        absmax = level * tl.load(scales[1] + block // 256, mask=mask, other=0.0) + tl.load(scales[3])
        return tl.where(mask, absmax, 0.0)


@triton.jit
def _in_shared_memory(words_ptr, ROWS: tl.constexpr):
    """The lane's address in a table of ROWS words (16 or 256), each repeated for all lanes."""
    if ROWS == 256:
        base = tl.inline_asm_elementwise(_BYTES, "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    else:
        base = tl.inline_asm_elementwise(_NIBBLES, "=r", [], dtype=tl.int32, is_pure=False, pack=1)
    row = tl.arange(0, ROWS)
    address = base + row[:, None] * 128 + tl.arange(0, 8)[None, :] * 16
    words = tl.broadcast_to(tl.load(words_ptr + row)[:, None], (ROWS, 8))
    tl.inline_asm_elementwise(_FILL, "=r,r,r", [address, words], dtype=tl.int32, is_pure=False, pack=1)
    tl.debug_barrier()
    return tl.inline_asm_elementwise(_LANE, "=r,r", [base], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def load_table(table_ptr, NVIDIA: tl.constexpr):
    """What `decode_levels` needs, once before the loop. `table_ptr`: gain · level rounded; for PTX int32 [256], the two
    levels of each byte, else fp32 [16].
    """
    if NVIDIA:
        return _in_shared_memory(table_ptr, 256)
    else:
        return table_ptr


@triton.jit
def decode_levels(codes, table, DTYPE: tl.constexpr, NVIDIA: tl.constexpr):
    """gain · level in DTYPE (bf16 or fp16), [I, 2 J], of codes uint8 [I, J]; the high nibble is the even element."""
    if NVIDIA:
        pairs = tl.inline_asm_elementwise(
            _LOOK_UP, "=r,=r,=r,=r,r,r,r,r,r", [codes, table], dtype=tl.int32, is_pure=True, pack=4
        )
        even = pairs.to(tl.int16).to(DTYPE, bitcast=True)
        odd = (pairs >> 16).to(tl.int16).to(DTYPE, bitcast=True)
    else:
        codes = codes.to(tl.int32)
        even, odd = tl.load(table + (codes >> 4)).to(DTYPE), tl.load(table + (codes & 15)).to(DTYPE)
    return tl.reshape(tl.join(even, odd), (codes.shape[0], 2 * codes.shape[1]))


@triton.jit
def load_exact_table(levels_ptr, NVIDIA: tl.constexpr):
    """What `decode_exact` needs of the levels fp32 [16], once before the loop."""
    if NVIDIA:
        return _in_shared_memory(levels_ptr.to(tl.pointer_type(tl.int32)), 16)
    else:
        return levels_ptr


@triton.jit
def decode_exact(codes, table, NVIDIA: tl.constexpr):
    """(even, odd): levels in fp32 of the high and of the low nibbles of codes uint8 [...]."""
    if NVIDIA:
        return tl.inline_asm_elementwise(
            _LOOK_UP_EXACT,
            "=&f,=&f,=&f,=&f,=&f,=&f,=&f,=&f,r,r,r,r,r",
            [codes, table],
            dtype=(tl.float32, tl.float32),
            is_pure=True,
            pack=4,
        )
    else:
        codes = codes.to(tl.int32)
        return tl.load(table + (codes >> 4)), tl.load(table + (codes & 15))
