"""acc + W xᵀ over a range of K for a 4-bit W whose rows have whole blocks: levels go through the tensor cores, and a
block's scale multiplies the fp32 sum of that block.

Both operands are read in the order in which the tensor cores' operands lie in registers, so that a warp decodes what it
multiplies and nothing is moved in between. A lane loads 8 neighbouring bytes of codes of a row, 16 weights:

    mma      lane t of four, weights 16 t + 8 h + e at place 32 h + 8 t + e      (Triton reads x by eights there)
    wgmma    lane t of four, weights 16 t + 2 s + e at place 8 s + 2 t + e
    others   as they lie

and a warp's rows 8 h + g of 16 are 8 rows of the load from each half. x is loaded in the same order along K.
"""

import triton
import triton.language as tl

from .exact_dot import exact_dot
from .nf4_decode import decode_levels, load_table, runs_ptx
from .scale_table import fill_scale_table, scale_table, scales_of_block


@triton.jit
def packed_product(
    acc,
    x_ptr,
    w_ptr,
    levels_ptr,
    scales,
    first_n,
    first_m,
    first,
    end,
    M,
    N,
    K,
    BLOCK_SIZE: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    SPAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    TARGET: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tuple like `acc`, of fp32 [BLOCK_N, tokens of a chunk]. first, end and K are multiples of BLOCK_K, K of
    BLOCK_SIZE. Rows past N repeat the last.
    """
    STEP: tl.constexpr = min(BLOCK_SIZE, BLOCK_K, 64)
    CHUNK: tl.constexpr = acc[0].shape[1]
    NVIDIA: tl.constexpr = runs_ptx(TARGET)
    ORDERED: tl.constexpr = STEP == 64 and (TARGET == "mma" or TARGET == "wgmma") and BLOCK_N % (16 * WARPS) == 0
    table = load_table(levels_ptr, NVIDIA)
    row = tl.arange(0, BLOCK_N)
    place = tl.arange(0, STEP)
    if ORDERED:
        rows_of_w = row // (16 * WARPS) * (16 * WARPS) + row // 8 % WARPS * 16 + row // (8 * WARPS) % 2 * 8 + row % 8
        if TARGET == "mma":
            columns_of_x = place // 8 % 4 * 16 + place // 32 * 8 + place % 8
        else:
            columns_of_x = place // 2 % 4 * 16 + place // 8 * 2 + place % 2
    else:
        rows_of_w = row
        columns_of_x = place
    rows_w = w_ptr + tl.minimum(first_n + rows_of_w, N - 1).to(tl.int64) * (K // 2)
    codes_ptr = rows_w[:, None] + tl.arange(0, STEP // 2)[None, :]
    blocks = tl.minimum(first_n + row, N - 1).to(tl.uint32) * (K // BLOCK_SIZE).to(tl.uint32)
    offs_m = first_m + tl.arange(0, CHUNK)
    in_shared = scale_table(BLOCK_N, SPAN, NVIDIA)
    last = tl.cdiv(end, BLOCK_SIZE)
    for span in range(first // BLOCK_SIZE, last, SPAN):
        filled = fill_scale_table(in_shared, blocks, span, last, scales, INVERSE_GAIN, SPAN, ALIGNED, NVIDIA)
        start, stop = tl.maximum(span * BLOCK_SIZE, first), tl.minimum((span + SPAN) * BLOCK_SIZE, end)
        for k in range(start, stop, BLOCK_K):
            for j in tl.static_range(BLOCK_K // STEP):
                at = k + j * STEP
                codes = tl.load(codes_ptr + at // 2)
                if ORDERED and TARGET == "mma":
                    codes = codes.reshape(BLOCK_N // (16 * WARPS), 2, WARPS, 8, 4, 2, 4)
                    codes = codes.permute(0, 2, 1, 3, 5, 4, 6).reshape(BLOCK_N, STEP // 2)
                elif ORDERED:
                    codes = codes.reshape(BLOCK_N // (16 * WARPS), 2, WARPS, 8, 4, 8)
                    codes = codes.permute(0, 2, 1, 3, 5, 4).reshape(BLOCK_N, STEP // 2)
                w = decode_levels(codes, table, x_ptr.dtype.element_ty, NVIDIA)  # [BLOCK_N, STEP]
                scale = scales_of_block(filled, blocks, span, at // BLOCK_SIZE, scales, INVERSE_GAIN, NVIDIA)
                sums = ()
                for c in tl.static_range(len(acc)):
                    rows = offs_m + c * CHUNK
                    x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * K + columns_of_x[None, :] + at
                    x = tl.load(x_ptrs, mask=(rows < M)[:, None], other=0.0)  # [CHUNK, STEP]
                    part = exact_dot(w, tl.trans(x), tl.zeros((BLOCK_N, CHUNK), tl.float32), TARGET)
                    sums = sums + (acc[c] + part * scale[:, None],)
                acc = sums
    return acc
