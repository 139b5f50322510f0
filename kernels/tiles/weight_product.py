"""acc + W xᵀ over a range of K: the main loop of a product with the base weight, in tiles [BLOCK_N, BLOCK_M].

W is the first factor, so that each of its elements is decoded by one warp only. Two ways for a 4-bit W:

    PACKED      whole blocks along a row, bf16 or fp16 x: rounded levels are multiplied, and the block's scale, over the
                gain, multiplies the fp32 sum of that block
    otherwise   level · absmax in fp32, rounded to x's dtype as bitsandbytes does (fp32: as it is)
"""

import triton
import triton.language as tl

from .exact_dot import exact_dot
from .nf4_decode import block_scale, decode_levels, load_table
from .weight_tile import weight_tile


@triton.jit
def low_rank_start(b_hat_ptr, p_ptr, offs_n, offs_m, M, N, R, TARGET: tl.constexpr, BLOCK_R: tl.constexpr):
    """B̂ Pᵀ [BLOCK_N, BLOCK_M] in fp32; B̂ [N, R], P [M, R], both contiguous."""
    acc = tl.zeros((offs_n.shape[0], offs_m.shape[0]), tl.float32)
    for r in range(0, R, BLOCK_R):
        offs_r = r + tl.arange(0, BLOCK_R)
        mask_b = (offs_n < N)[:, None] & (offs_r < R)[None, :]
        b_hat = tl.load(b_hat_ptr + offs_n.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_b, other=0.0)
        mask_p = (offs_r < R)[:, None] & (offs_m < M)[None, :]
        p = tl.load(p_ptr + offs_m.to(tl.int64)[None, :] * R + offs_r[:, None], mask=mask_p, other=0.0)
        acc = exact_dot(b_hat, p, acc, TARGET)  # [BLOCK_N, BLOCK_R] [BLOCK_R, BLOCK_M]
    return acc


@triton.jit
def weight_product(
    acc,
    x_ptr,
    w_ptr,
    levels_ptr,
    scales,
    offs_n,
    offs_m,
    first,
    end,
    M,
    N,
    K,
    stride_wn,
    stride_wk,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """acc [BLOCK_N, BLOCK_M] + W[:, first:end] x[:, first:end]ᵀ; x [M, K] contiguous, `first` a multiple of BLOCK_K.

    `levels_ptr` is the decoder's table where PACKED, else the sixteen levels in fp32.
    """
    rows_x = x_ptr + offs_m.to(tl.int64) * K
    mask_n, mask_m = offs_n < N, offs_m < M
    if PACKED:
        # a block divides K, BLOCK_K divides a block: no tile has a tail along K or a second scale in a row
        table = load_table(levels_ptr, TARGET)
        rows_w = w_ptr + offs_n.to(tl.int64) * (K // 2)
        blocks = offs_n.to(tl.int64) * (K // BLOCK_SIZE)
        offs_b = tl.arange(0, BLOCK_K // 2)
        offs_k = tl.arange(0, BLOCK_K)
        for k in range(first, end, BLOCK_K):
            codes = tl.load(rows_w[:, None] + (k // 2 + offs_b)[None, :], mask=mask_n[:, None], other=0)
            w_even, w_odd = decode_levels(codes, table, x_ptr.dtype.element_ty, TARGET)  # [BLOCK_N, BLOCK_K / 2]
            x = tl.load(rows_x[:, None] + (k + offs_k)[None, :], mask=mask_m[:, None], other=0.0)
            x_even, x_odd = tl.split(tl.reshape(x, (x.shape[0], BLOCK_K // 2, 2)))  # [BLOCK_M, BLOCK_K / 2]
            part = tl.zeros((w_even.shape[0], x_even.shape[0]), tl.float32)
            part = exact_dot(w_even, tl.trans(x_even), part, TARGET)
            part = exact_dot(w_odd, tl.trans(x_odd), part, TARGET)
            scale = block_scale(blocks + k // BLOCK_SIZE, scales, mask_n) * INVERSE_GAIN
            acc += part * scale[:, None]
    else:
        for k in range(first, end, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < end
            mask_w = mask_n[:, None] & mask_k[None, :]
            w = weight_tile(
                w_ptr,
                levels_ptr,
                scales,
                offs_n[:, None],
                offs_k[None, :],
                mask_w,
                K,
                stride_wn,
                stride_wk,
                BLOCK_SIZE,
            )
            if BLOCK_SIZE > 0:
                w = w.to(x_ptr.dtype.element_ty)
            mask_x = mask_k[:, None] & mask_m[None, :]
            x = tl.load(rows_x[None, :] + offs_k[:, None], mask=mask_x, other=0.0)
            acc = exact_dot(w, x, acc, TARGET)  # [BLOCK_N, BLOCK_K] [BLOCK_K, BLOCK_M]
    return acc
