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
from .nf4_decode import block_scale, decode_levels, load_table, runs_ptx
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
    if NVIDIA:
        in_shared = scale_table(BLOCK_N, SPAN)
        last = tl.cdiv(end, BLOCK_SIZE)
        for span in range(first // BLOCK_SIZE, last, SPAN):
            filled = fill_scale_table(in_shared, blocks, span, last, scales, INVERSE_GAIN, SPAN, ALIGNED)
            start, stop = tl.maximum(span * BLOCK_SIZE, first), tl.minimum((span + SPAN) * BLOCK_SIZE, end)
            for k in range(start, stop, BLOCK_K):
                for j in tl.static_range(BLOCK_K // STEP):
                    at = k + j * STEP
                    w = _levels(codes_ptr + at // 2, table, x_ptr.dtype.element_ty, ORDERED, TARGET, WARPS)
                    scale = scales_of_block(filled, at // BLOCK_SIZE - span, BLOCK_N)
                    acc = _sums(acc, w, scale, x_ptr, columns_of_x + at, offs_m, M, K, TARGET)
    else:
        for k in range(first, end, BLOCK_K):
            for j in tl.static_range(BLOCK_K // STEP):
                at = k + j * STEP
                w = _levels(codes_ptr + at // 2, table, x_ptr.dtype.element_ty, ORDERED, TARGET, WARPS)
                scale = block_scale(blocks + (at // BLOCK_SIZE).to(tl.uint32), scales, None) * INVERSE_GAIN
                acc = _sums(acc, w, scale, x_ptr, columns_of_x + at, offs_m, M, K, TARGET)
    return acc


@triton.jit
def _levels(codes_ptr, table, DTYPE: tl.constexpr, ORDERED: tl.constexpr, TARGET: tl.constexpr, WARPS: tl.constexpr):
    """gain · level [BLOCK_N, STEP] of the codes at `codes_ptr`, where W's operand has them in registers."""
    ROWS: tl.constexpr = codes_ptr.shape[0]
    BYTES: tl.constexpr = codes_ptr.shape[1]
    codes = tl.load(codes_ptr)
    if ORDERED and TARGET == "mma":
        codes = codes.reshape(ROWS // (16 * WARPS), 2, WARPS, 8, 4, 2, 4)
        codes = codes.permute(0, 2, 1, 3, 5, 4, 6).reshape(ROWS, BYTES)
    elif ORDERED:
        codes = codes.reshape(ROWS // (16 * WARPS), 2, WARPS, 8, 4, 8)
        codes = codes.permute(0, 2, 1, 3, 5, 4).reshape(ROWS, BYTES)
    return decode_levels(codes, table, DTYPE, runs_ptx(TARGET))


@triton.jit
def _sums(acc, w, scale, x_ptr, columns, offs_m, M, K, TARGET: tl.constexpr):
    """acc + scale ∘ (W xᵀ) over these columns of x, of one block of W."""
    CHUNK: tl.constexpr = acc[0].shape[1]
    sums = ()
    for c in tl.static_range(len(acc)):
        rows = offs_m + c * CHUNK
        x_ptrs = x_ptr + rows.to(tl.int64)[:, None] * K + columns[None, :]
        x = tl.load(x_ptrs, mask=(rows < M)[:, None], other=0.0)  # [CHUNK, STEP]
        part = exact_dot(w, tl.trans(x), tl.zeros((w.shape[0], CHUNK), tl.float32), TARGET)
        sums = sums + (acc[c] + part * scale[:, None],)
    return sums
