"""acc + W xᵀ over a range of K: the main loop of a product with the base weight, in tiles of W's rows by tokens.

W is the first factor, so that each of its elements is decoded by one warp only. A 4-bit W whose rows have whole blocks
goes through `packed_product`; else W is multiplied element by element as bitsandbytes decodes it, level · absmax in
fp32, rounded to x's dtype (fp32: as it is).
"""

import triton
import triton.language as tl

from .exact_dot import exact_dot, holds_tensor_memory
from .packed_product import packed_product
from .weight_tile import weight_tile


@triton.jit
def low_rank_start(
    b_hat_ptr, p_ptr, offs_n, offs_m, M, N, rank, R, stride_p, TARGET: tl.constexpr, BLOCK_R: tl.constexpr
):
    """B̂ Pᵀ [BLOCK_N, tokens] in fp32 over the first `rank` of R; B̂ [N, R], P [M, R], its rows `stride_p` apart."""
    acc = tl.zeros((offs_n.shape[0], offs_m.shape[0]), tl.float32)
    if holds_tensor_memory(TARGET):
        # no `for`, across which it would be held
        r = 0
        while r < rank:
            acc = _low_rank_step(acc, b_hat_ptr, p_ptr, offs_n, offs_m, r, M, N, R, stride_p, TARGET, BLOCK_R)
            r += BLOCK_R
    else:
        for r in range(0, rank, BLOCK_R):
            acc = _low_rank_step(acc, b_hat_ptr, p_ptr, offs_n, offs_m, r, M, N, R, stride_p, TARGET, BLOCK_R)
    return acc


@triton.jit
def _low_rank_step(
    acc, b_hat_ptr, p_ptr, offs_n, offs_m, r, M, N, R, stride_p, TARGET: tl.constexpr, BLOCK_R: tl.constexpr
):
    offs_r = r + tl.arange(0, BLOCK_R)
    mask_b = (offs_n < N)[:, None] & (offs_r < R)[None, :]
    b_hat = tl.load(b_hat_ptr + offs_n.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_b, other=0.0)
    mask_p = (offs_r < R)[:, None] & (offs_m < M)[None, :]
    p = tl.load(p_ptr + offs_m.to(tl.int64)[None, :] * stride_p + offs_r[:, None], mask=mask_p, other=0.0)
    return exact_dot(b_hat, p, acc, TARGET)  # [BLOCK_N, BLOCK_R] [BLOCK_R, tokens]


@triton.jit
def weight_product(
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
    stride_wn,
    stride_wk,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    SPAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    TARGET: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """A tuple like `acc`, of fp32 [BLOCK_N, tokens of a chunk]; x [M, K] contiguous, `first` a multiple of BLOCK_K.

    `levels_ptr` is the decoder's table where PACKED, else the sixteen levels in fp32.
    """
    if PACKED:
        return packed_product(
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
            BLOCK_SIZE,
            INVERSE_GAIN,
            SPAN,
            ALIGNED,
            TARGET,
            WARPS,
            BLOCK_N,
            BLOCK_K,
        )
    else:
        CHUNK: tl.constexpr = acc[0].shape[1]
        offs_n = first_n + tl.arange(0, BLOCK_N)
        offs_m = first_m + tl.arange(0, CHUNK)
        mask_n = offs_n < N
        for k in range(first, end, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            mask_k = offs_k < end
            mask_w = mask_n[:, None] & mask_k[None, :]
            w = weight_tile(
                w_ptr, levels_ptr, scales, offs_n[:, None], offs_k[None, :], mask_w, K, stride_wn, stride_wk, BLOCK_SIZE
            )
            if BLOCK_SIZE > 0:
                w = w.to(x_ptr.dtype.element_ty)
            sums = ()
            for c in tl.static_range(len(acc)):
                rows = offs_m + c * CHUNK
                mask_x = mask_k[:, None] & (rows < M)[None, :]
                x = tl.load(x_ptr + rows.to(tl.int64)[None, :] * K + offs_k[:, None], mask=mask_x, other=0.0)
                sums = sums + (exact_dot(w, x, acc[c], TARGET),)  # [BLOCK_N, BLOCK_K] [BLOCK_K, CHUNK]
            acc = sums
        return acc
