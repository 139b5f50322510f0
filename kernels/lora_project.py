"""P = drop(x) (A ∘ c)ᵀ: the projection onto the rank, forward (c absent) and backward (Q = G (c ∘ B̂), A = B̂ᵀ).

    x [M, K] any float, contiguous     A [R, K] any float and strides     c [K]     P [M, R] fp32, contiguous

drop keeps elements by the regenerated mask; the division by 1 − p is of the sum, so x's elements stay exact.
Grid: (tiles of M and R, S). Few tiles share K among S programs each (`tiles/split_sum`). Work: 2 M K R flops; reads x
once for each tile of R, A once for each tile of M; where split, 4 S bytes an element of the tiles more each way.
Rounds: nothing but fp32 sums (`tiles/exact_dot`); A ∘ c once.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.dropout import operand_kept
from .tiles.exact_dot import exact_dot
from .tiles.split_sum import summed


@triton.jit(do_not_specialize=["threshold"])
def lora_project_kernel(
    x_ptr,
    a_ptr,
    c_ptr,
    seed_ptr,
    p_ptr,
    parts_ptr,
    arrivals_ptr,
    M,
    K,
    R,
    share,
    stride_ar,
    stride_ak,
    threshold,
    keep_scale,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    tiles_r = tl.cdiv(R, BLOCK_R)
    offs_m = tile // tiles_r * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_r = tile % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    rows_x = x_ptr + offs_m.to(tl.int64) * K
    acc = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    first = split * share
    end = tl.minimum(first + share, K)
    for k in range(first, end, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < end
        mask_x = (offs_m < M)[:, None] & mask_k[None, :]
        x = tl.load(rows_x[:, None] + offs_k[None, :], mask=mask_x, other=0.0)
        if seed_ptr is not None:
            x = tl.where(operand_kept(tl.load(seed_ptr), offs_m, k, threshold, BLOCK_M, BLOCK_K), x, 0.0)
        mask_a = mask_k[:, None] & (offs_r < R)[None, :]
        at = offs_r.to(tl.int64)[None, :] * stride_ar + offs_k.to(tl.int64)[:, None] * stride_ak
        a = tl.load(a_ptr + at, mask=mask_a, other=0.0)
        if c_ptr is not None:
            a = a.to(tl.float32) * tl.load(c_ptr + offs_k, mask=mask_k, other=0.0).to(tl.float32)[:, None]
        acc = exact_dot(x, a, acc, TARGET)  # [BLOCK_M, BLOCK_K] [BLOCK_K, BLOCK_R]
    if seed_ptr is not None:
        acc *= keep_scale
    mask = (offs_m < M)[:, None] & (offs_r < R)[None, :]
    at = offs_m.to(tl.int64)[:, None] * R + offs_r[None, :]
    place = tl.arange(0, BLOCK_M)[:, None] * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
    acc, last = summed(acc, parts_ptr, arrivals_ptr, tile, split, place, mask, BLOCK_M * BLOCK_R)
    if last:
        tl.store(p_ptr + at, acc, mask=mask)


def lora_project(
    x, a, c, seed, p, parts, arrivals, M: int, K: int, R: int, share: int, strides, dropout, config: LaunchConfig
) -> KernelCall:
    """The launch over the whole of P, ceil(K / share) programs a tile; `share` is a multiple of BLOCK_K.

    `strides` are A's; `dropout` the keyword arguments threshold and keep_scale; `parts` and `arrivals` as in
    `tiles/split_sum`, None where share ≥ K.
    """
    tiles = triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(R, config["BLOCK_R"])
    return kernel_call(
        lora_project_kernel,
        (tiles, triton.cdiv(K, share)),
        x_ptr=x,
        a_ptr=a,
        c_ptr=c,
        seed_ptr=seed,
        p_ptr=p,
        parts_ptr=parts,
        arrivals_ptr=arrivals,
        M=M,
        K=K,
        R=R,
        share=share,
        stride_ar=strides[0],
        stride_ak=strides[1],
        **dropout,
        **config.constexprs(),
        **config.options(),
    )
