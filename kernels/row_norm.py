"""n_j = ‖w_j + b̂_j A‖₂ per output feature, from W's storage, without the dense W + B̂A.

    n² = ‖w_j‖² + 2 b̂_j·(A w_j) + b̂_j (A Aᵀ) b̂_jᵀ

    W [N, K] dense with any strides, or 4-bit codes     A [R, K], B̂ [N, R], A Aᵀ [R, R] fp32, contiguous
    weight_squared [N] fp32 or absent (formed here)     n [N] fp32

A row whose sum is at most CANCELLATION (‖w_j‖² + Σ_r b̂_jr² ‖a_r‖²) has lost digits to cancellation: its program goes
over W once more and sums (w + b̂A)² directly. n is at least FLOOR.
Grid: tiles of N, each over the whole of K. Work: 2 N K R flops in exact fp32; reads W once, A once for each tile of N.
Without A and B̂ it is ‖w_j‖² alone (`squared` True).
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.exact_dot import exact_dot
from .tiles.nf4_decode import load_exact_table, runs_ptx
from .tiles.weight_tile import block_tile, in_one_block, weight_tile


@triton.jit
def _tile(
    w_ptr,
    levels_ptr,
    table,
    scales,
    offs_n,
    k,
    N,
    K,
    stride_wn,
    stride_wk,
    BLOCK_SIZE: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    NVIDIA: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """W at rows `offs_n` and BLOCK_K columns from k, 0 beyond K; rows past N are anything."""
    if ONE_BLOCK:
        return block_tile(w_ptr, table, scales, tl.minimum(offs_n, N - 1), k, K, BLOCK_SIZE, BLOCK_K, NVIDIA)
    else:
        offs_k = k + tl.arange(0, BLOCK_K)
        mask = (offs_n < N)[:, None] & (offs_k < K)[None, :]
        return weight_tile(
            w_ptr, levels_ptr, scales, offs_n[:, None], offs_k[None, :], mask, K, stride_wn, stride_wk, BLOCK_SIZE
        )


@triton.jit
def row_norm_kernel(
    w_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    a_ptr,
    b_hat_ptr,
    gram_ptr,
    weight_squared_ptr,
    n_ptr,
    N,
    K,
    R,
    stride_wn,
    stride_wk,
    CANCELLATION: tl.constexpr,
    FLOOR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    scales = (absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr)
    NVIDIA: tl.constexpr = runs_ptx(TARGET)
    table = levels_ptr
    if ONE_BLOCK:
        table = load_exact_table(levels_ptr, NVIDIA)
    squared = tl.zeros((BLOCK_N,), tl.float32)
    if weight_squared_ptr is not None:
        squared = tl.load(weight_squared_ptr + offs_n, mask=mask_n, other=0.0)
    else:
        for k in range(0, K, BLOCK_K):
            w = _tile(
                w_ptr,
                levels_ptr,
                table,
                scales,
                offs_n,
                k,
                N,
                K,
                stride_wn,
                stride_wk,
                BLOCK_SIZE,
                ONE_BLOCK,
                NVIDIA,
                BLOCK_K,
            ).to(tl.float32)
            squared += tl.sum(w * w, axis=1)
    if a_ptr is None:
        tl.store(n_ptr + offs_n, squared, mask=mask_n)
    else:
        total = squared
        for r in range(0, R, BLOCK_R):
            offs_r = r + tl.arange(0, BLOCK_R)
            mask_r = offs_r < R
            mask_b = mask_n[:, None] & mask_r[None, :]
            b_hat = tl.load(b_hat_ptr + offs_n.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_b, other=0.0)
            cross = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
            for k in range(0, K, BLOCK_K):
                offs_k = k + tl.arange(0, BLOCK_K)
                mask_k = offs_k < K
                w = _tile(
                    w_ptr,
                    levels_ptr,
                    table,
                    scales,
                    offs_n,
                    k,
                    N,
                    K,
                    stride_wn,
                    stride_wk,
                    BLOCK_SIZE,
                    ONE_BLOCK,
                    NVIDIA,
                    BLOCK_K,
                )
                mask_a = mask_k[:, None] & mask_r[None, :]
                a = tl.load(a_ptr + offs_r.to(tl.int64)[None, :] * K + offs_k[:, None], mask=mask_a, other=0.0)
                cross = exact_dot(w, a, cross, TARGET)  # [BLOCK_N, BLOCK_K] [BLOCK_K, BLOCK_R]
            cross *= 2.0
            for s in range(0, R, BLOCK_R):
                offs_s = s + tl.arange(0, BLOCK_R)
                mask_s = offs_s < R
                mask_other = mask_n[:, None] & mask_s[None, :]
                other = tl.load(
                    b_hat_ptr + offs_n.to(tl.int64)[:, None] * R + offs_s[None, :], mask=mask_other, other=0.0
                )
                mask_g = mask_s[:, None] & mask_r[None, :]
                gram = tl.load(gram_ptr + offs_s[:, None] * R + offs_r[None, :], mask=mask_g, other=0.0)
                cross = exact_dot(other, gram, cross, TARGET)  # [BLOCK_N, BLOCK_R] [BLOCK_R, BLOCK_R]
            total += tl.sum(cross * b_hat, axis=1)
        # what was added up, by itself: within the loop it would cost registers beside the tiles
        parts = squared
        for r in range(0, R, BLOCK_R):
            offs_r = r + tl.arange(0, BLOCK_R)
            mask_r = offs_r < R
            mask_b = mask_n[:, None] & mask_r[None, :]
            b_hat = tl.load(b_hat_ptr + offs_n.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_b, other=0.0)
            of_a = tl.load(gram_ptr + offs_r * (R + 1), mask=mask_r, other=0.0)
            parts += tl.sum(b_hat * b_hat * of_a[None, :], axis=1)
        near = mask_n & (total <= CANCELLATION * parts)
        if tl.max(near.to(tl.int32), axis=0) > 0:
            direct = tl.zeros((BLOCK_N,), tl.float32)
            for k in range(0, K, BLOCK_K):
                offs_k = k + tl.arange(0, BLOCK_K)
                mask_k = offs_k < K
                sum_ = _tile(
                    w_ptr,
                    levels_ptr,
                    table,
                    scales,
                    offs_n,
                    k,
                    N,
                    K,
                    stride_wn,
                    stride_wk,
                    BLOCK_SIZE,
                    ONE_BLOCK,
                    NVIDIA,
                    BLOCK_K,
                ).to(tl.float32)
                for r in range(0, R, BLOCK_R):
                    offs_r = r + tl.arange(0, BLOCK_R)
                    mask_r = offs_r < R
                    mask_b = mask_n[:, None] & mask_r[None, :]
                    b_hat = tl.load(
                        b_hat_ptr + offs_n.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_b, other=0.0
                    )
                    mask_a = mask_r[:, None] & mask_k[None, :]
                    a = tl.load(a_ptr + offs_r.to(tl.int64)[:, None] * K + offs_k[None, :], mask=mask_a, other=0.0)
                    sum_ = exact_dot(b_hat, a, sum_, TARGET)  # [BLOCK_N, BLOCK_R] [BLOCK_R, BLOCK_K]
                direct += tl.sum(sum_ * sum_, axis=1)
            total = tl.where(near, direct, total)
        n = tl.maximum(tl.sqrt_rn(tl.maximum(total, 0.0)), FLOOR)
        tl.store(n_ptr + offs_n, n, mask=mask_n)


def row_norm(
    weight,
    a,
    b_hat,
    gram,
    weight_squared,
    n,
    N: int,
    K: int,
    R: int,
    cancellation: float,
    floor: float,
    config: LaunchConfig,
) -> KernelCall:
    """The launch over all output features; ‖w_j‖² alone where `a`, `b_hat` and `gram` are None."""
    return kernel_call(
        row_norm_kernel,
        (triton.cdiv(N, config["BLOCK_N"]),),
        **weight,
        a_ptr=a,
        b_hat_ptr=b_hat,
        gram_ptr=gram,
        weight_squared_ptr=weight_squared,
        n_ptr=n,
        N=N,
        K=K,
        R=R,
        CANCELLATION=cancellation,
        FLOOR=floor,
        ONE_BLOCK=in_one_block(weight["BLOCK_SIZE"], K, config["BLOCK_K"]),
        **config.constexprs(),
        **config.options(contract=False),
    )
