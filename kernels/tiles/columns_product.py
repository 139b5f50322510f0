"""G W over a range of N for a 4-bit W whose rows have whole blocks, on mma.sync: what `packed_product` is for rows.

Formed as Wᵀ Gᵀ, Wᵀ decoded in the order in which the tensor cores take it from registers, so that nothing is moved
between look-up and product. Decoded exactly: a block's scale belongs to a term of the sum. A tile has 64 columns of W,
32 bytes of a row, and each warp sums over rows of its own; lane 4 g + t of a warp has bytes 4 g … of its rows
4 E q + E t + e, E 4 (Triton reads by fours there), before Triton 3.8 8, of what is rounded before it is joined. Byte
4 g + b is rows 16 b + g (the high nibble) and 16 b + 8 + g of Wᵀ.
"""

import triton
import triton.language as tl

from ..launch_rows import TRITON
from .nf4_decode import block_scale, decode_exact, load_exact_table

# rows of W whose terms a lane has together: before Triton 3.8 by fours every element would change lanes
_TOGETHER = tl.constexpr(8 if TRITON < (3, 8) else 4)


@triton.jit
def columns_product(
    grad_y_ptr,
    w_ptr,
    levels_ptr,
    scales,
    c_ptr,
    first_m,
    first_k,
    first,
    end,
    M,
    N,
    K,
    BLOCK_SIZE: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """G (c ∘ W) in fp32 [BLOCK_M, 64] over rows `first` to `end` of W; BLOCK_N a multiple of 32 WARPS."""
    OWN: tl.constexpr = BLOCK_N // WARPS
    E: tl.constexpr = _TOGETHER
    table = load_exact_table(levels_ptr, True)
    offs_m = first_m + tl.arange(0, BLOCK_M)
    mask_m = offs_m < M
    rows_g = grad_y_ptr + offs_m.to(tl.int64) * N
    rows = tl.arange(0, BLOCK_N)
    # loads of four bytes: row of W (of the turn's) and first byte
    load = tl.arange(0, BLOCK_N * 8)
    row_of_load = load // 32 % WARPS * OWN + load // (32 * E * WARPS) * (4 * E)
    row_of_load += load % 4 * E + load // (32 * WARPS) % E
    bytes_of_load = (load // 4 % 8 * 4)[:, None] + tl.arange(0, 4)[None, :]
    acc = tl.zeros((WARPS, 64, BLOCK_M), tl.float32)
    for n in range(first, end, BLOCK_N):
        offs_n = n + rows
        mask_n = offs_n < end
        grad_y = tl.load(rows_g[:, None] + offs_n[None, :], mask=mask_m[:, None] & mask_n[None, :], other=0.0)
        # rows past the end repeat the last, times 0; from the turn's first row 32 bits are enough, and cost half of 64
        row = tl.minimum(row_of_load, N - 1 - n).to(tl.uint32) * (K // 2).to(tl.uint32)
        offset = row[:, None] + bytes_of_load.to(tl.uint32)
        codes = tl.load(w_ptr + (n * (K // 2).to(tl.int64) + first_k // 2) + offset)
        codes = codes.reshape(OWN // (4 * E), E, WARPS, 8, 4, 4)  # q, e, warp, g, t, b
        high, low = decode_exact(codes, table, True)
        block = tl.minimum(offs_n, N - 1).to(tl.uint32) * (K // BLOCK_SIZE) + first_k // BLOCK_SIZE
        scale = block_scale(block, scales, None)
        if c_ptr is not None:
            scale *= tl.load(c_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)
        scale = scale.reshape(WARPS, OWN // (4 * E), 4, E).permute(1, 3, 0, 2)[:, :, :, None, :, None]
        high, low = high * scale, low * scale
        if E == 8:
            high, low = high.to(grad_y.dtype), low.to(grad_y.dtype)
        w = tl.join(high, low).permute(2, 5, 6, 3, 0, 4, 1).reshape(WARPS, 64, OWN)
        grad_y = grad_y.reshape(BLOCK_M, WARPS, OWN).permute(1, 2, 0)
        acc = tl.dot(w.to(grad_y.dtype), grad_y, acc)
    total = tl.sum(acc, axis=0).reshape(4, 2, 8, BLOCK_M)
    return tl.trans(total.permute(2, 0, 1, 3).reshape(64, BLOCK_M))
