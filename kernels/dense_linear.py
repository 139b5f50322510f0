"""Y = x V + drop'(F H) + bias with a dense V: the second half of the staged path, whose first is `nf4_dequantize`.

    forward     V = Wᵀ, F = P [M, R], H = B̂ᵀ          (a scale c of output features is in W's elements and in B̂)
    backward    V = W, F = Q [M, R], H = A; drop' keeps what the forward kept and divides by 1 − p; no bias

    x [M, K], W [N, K] (forward) or [K, N] (backward) bf16 or fp16, contiguous, rows of whole 16 bytes
    F [M, R] fp32, contiguous        H [R, N] fp32, any strides        bias [N]        Y [M, N] in x's dtype, contiguous

Persistent: as many programs as multiprocessors go through the tiles [BLOCK_M, BLOCK_N] of Y. x and W come through
tensor descriptors, which the tensor memory accelerator copies where there is one (sm_90 and later).
Work: 2 M N (K + R) flops; reads x once for each tile of N, W once for each tile of M, writes Y once. With K = 0 it
writes the low-rank part alone, from which another product starts.
Rounds: sums in fp32, Y once.
"""

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.dropout import kept
from .tiles.exact_dot import exact_dot, holds_tensor_memory
from .tiles.tile_order import tile_order


@triton.jit
def _low_rank_step(
    acc,
    f_ptr,
    h_ptr,
    offs_m,
    offs_n,
    r,
    mask_m,
    mask_n,
    R,
    stride_hr,
    stride_hn,
    TARGET: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """acc + F H over BLOCK_R of R from `r` on."""
    offs_r = r + tl.arange(0, BLOCK_R)
    mask_f = mask_m[:, None] & (offs_r < R)[None, :]
    f = tl.load(f_ptr + offs_m.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_f, other=0.0)
    mask_h = (offs_r < R)[:, None] & mask_n[None, :]
    at = offs_r.to(tl.int64)[:, None] * stride_hr + offs_n.to(tl.int64)[None, :] * stride_hn
    return exact_dot(f, tl.load(h_ptr + at, mask=mask_h, other=0.0), acc, TARGET)


@triton.jit(do_not_specialize=["threshold"])
def dense_linear_kernel(
    x_desc,
    w_desc,
    f_ptr,
    h_ptr,
    seed_ptr,
    bias_ptr,
    y_ptr,
    M,
    N,
    K,
    R,
    stride_hr,
    stride_hn,
    threshold,
    keep_scale,
    BACKWARD: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
):
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in range(tl.program_id(0), tiles, tl.num_programs(0)):
        tile_m, tile_n = tile_order(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
        offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        mask_m, mask_n = offs_m < M, offs_n < N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if f_ptr is not None:
            if holds_tensor_memory(TARGET):
                # no `for`, across which it would be held
                r = 0
                while r < R:
                    acc = _low_rank_step(
                        acc, f_ptr, h_ptr, offs_m, offs_n, r, mask_m, mask_n, R, stride_hr, stride_hn, TARGET, BLOCK_R
                    )
                    r += BLOCK_R
            else:
                for r in range(0, R, BLOCK_R):
                    acc = _low_rank_step(
                        acc, f_ptr, h_ptr, offs_m, offs_n, r, mask_m, mask_n, R, stride_hr, stride_hn, TARGET, BLOCK_R
                    )
            if seed_ptr is not None:
                keep = kept(tl.load(seed_ptr), offs_m, tile_n * BLOCK_N, threshold, BLOCK_M, BLOCK_N)
                acc = tl.where(keep, acc * keep_scale, 0.0)
        for k in range(0, K, BLOCK_K):
            x = x_desc.load([tile_m * BLOCK_M, k])  # [BLOCK_M, BLOCK_K]
            if BACKWARD:
                acc = exact_dot(x, w_desc.load([k, tile_n * BLOCK_N]), acc, TARGET)
            else:
                acc = exact_dot(x, tl.trans(w_desc.load([tile_n * BLOCK_N, k])), acc, TARGET)
        if bias_ptr is not None:
            acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
        mask = mask_m[:, None] & mask_n[None, :]
        at = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=mask)


def dense_linear(
    x, w, f, h, seed, bias, y, K: int, strides, dropout, programs: int, *, backward: bool, config: LaunchConfig
) -> KernelCall:
    """The launch over the whole of Y on at most `programs` programs.

    `strides` are H's; `dropout` the keyword arguments threshold and keep_scale; K is x's, or 0.
    """
    M, N = y.shape
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    tiles = triton.cdiv(M, block_m) * triton.cdiv(N, block_n)
    return kernel_call(
        dense_linear_kernel,
        (min(tiles, programs),),
        x_desc=TensorDescriptor.from_tensor(x, [block_m, block_k]),
        w_desc=TensorDescriptor.from_tensor(w, [block_k, block_n] if backward else [block_n, block_k]),
        f_ptr=f,
        h_ptr=h,
        seed_ptr=seed,
        bias_ptr=bias,
        y_ptr=y,
        M=M,
        N=N,
        K=K,
        R=0 if f is None else f.shape[1],
        stride_hr=strides[0],
        stride_hn=strides[1],
        **dropout,
        BACKWARD=backward,
        **config.constexprs(),
        **config.options(),
    )
