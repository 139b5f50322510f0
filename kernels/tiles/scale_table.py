"""The scales of a span of blocks of a tile's rows, decoded once into shared memory for the loop over their weights.

Block by block a scale would cost every turn of a product's loop a byte of each row, all from different sectors, a
look-up in memory that waits for it, and a way through shared memory to the lanes that need it. A span of 32 blocks is a
sector of absmax codes, read by one lane in one or two loads.

    table fp32 [SPAN, ROWS], static, beside the decoder's and what Triton allocates

It takes inline PTX; elsewhere a loop decodes block by block.
"""

from typing import Any

import triton
import triton.language as tl

from ..launch_config import LaunchConfig
from .nf4_decode import runs_ptx

# blocks; static shared memory ends at 48 KiB, 32 of which are the decoder's
_MOST, _WORDS = 32, 4096
_STORE = tl.constexpr("{ st.shared.f32 [$1], $2; mov.u32 $0, 0; }")


def span_of(weight: dict[str, Any], K: int, share: int, config: LaunchConfig) -> dict[str, int]:
    """SPAN and ALIGNED for the W [N, K] of these arguments, each program taking `share` of K; 0: no table."""
    if not (weight["PACKED"] and runs_ptx(config.target)):
        return {"SPAN": 0, "ALIGNED": 0}
    per_row, own = K // weight["BLOCK_SIZE"], max(1, min(share, K) // weight["BLOCK_SIZE"])
    span = min(_MOST, _WORDS // config["BLOCK_N"], triton.next_power_of_2(own))
    whole = share % weight["BLOCK_SIZE"] == 0
    # its lowest bit divides them all, and span is a power of two
    bits = span | per_row | ((own if whole else 1) if share < K else 0)
    return {"SPAN": span, "ALIGNED": bits & -bits}


@triton.constexpr_function
def _array(words):
    # a multiple of 1 KiB: what Triton allocates lies behind it, and wgmma and TMA swizzle in such pieces
    words = -(-words // 256) * 256
    return f"{{ .reg .b32 base; .shared .align 16 .b32 scales[{words}]; mov.u32 base, scales; mov.u32 $0, base; }}"


@triton.jit
def scale_table(ROWS: tl.constexpr, SPAN: tl.constexpr):
    """Where the table is: its address, once for a kernel."""
    return tl.inline_asm_elementwise(_array(ROWS * SPAN), "=r", [], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def fill_scale_table(table, rows, first, end, scales, INVERSE_GAIN, SPAN: tl.constexpr, ALIGNED: tl.constexpr):
    """The table with scales / gain of blocks `first` to `first` + SPAN of each row; those from `end` on are 0.

    `rows` uint32 [ROWS]: where each row's blocks begin. ALIGNED, a power of two, divides these, `first` and `end`.
    """
    ROWS: tl.constexpr = rows.shape[0]
    block = tl.arange(0, SPAN)
    # the compiler is to see what ALIGNED says
    first, end = first // ALIGNED * ALIGNED, end // ALIGNED * ALIGNED
    start = tl.multiple_of(rows + first.to(tl.uint32), ALIGNED)
    # [SPAN, ROWS]: for two loads of one shape the compiler would look for a common layout, the codes' suffering
    index = start[None, :] + block[:, None].to(tl.uint32)
    mask = None
    if ALIGNED < SPAN:
        mask = tl.broadcast_to((first + block < end)[:, None], (SPAN, ROWS))
    scale = tl.load(scales[0] + index, mask=mask, other=None if mask is None else 0)
    if scales[1] is not None:
        # a span is shorter than a nested block, and a row of it lies in one or two
        one, last = start // 256, (rows + tl.minimum(first + SPAN, end).to(tl.uint32) - 1) // 256
        nested = tl.load(scales[1] + one)[None, :]
        if ALIGNED < SPAN:
            nested = tl.where(index // 256 == one[None, :], nested, tl.load(scales[1] + last)[None, :])
        scale = tl.load(scales[2] + scale.to(tl.int32)) * nested + tl.load(scales[3])
    word = block[:, None] * ROWS + tl.arange(0, ROWS)[None, :]
    # until here others may still read what was there
    tl.debug_barrier()
    tl.inline_asm_elementwise(
        _STORE, "=r,r,f", [table + word * 4, scale * INVERSE_GAIN], dtype=tl.int32, is_pure=False, pack=1
    )
    tl.debug_barrier()
    # no read of the table is moved before the barrier: it needs this
    return tl.inline_asm_elementwise("mov.u32 $0, $1;", "=r,r", [table], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def scales_of_block(filled, block, ROWS: tl.constexpr):
    """fp32 [ROWS]: a block of each row, the table's `block`-th."""
    address = filled + (block * ROWS + tl.arange(0, ROWS)) * 4
    return tl.inline_asm_elementwise(
        "ld.shared.f32 $0, [$1];", "=f,r", [address], dtype=tl.float32, is_pure=True, pack=1
    )
