"""dx = (G ∘ c) W + drop'(Q A) in tiles of dx.

    G [M, N] in x's dtype, contiguous     W [N, K] dense with any strides, or 4-bit codes     c [N]
    Q [M, R], A [R, K] fp32, contiguous   dx [M, K] in G's dtype, contiguous

drop' keeps what the forward kept and divides by 1 − p; the mask is regenerated. 4-bit weights that mma.sync multiplies
go through `tiles/columns_product`.
Grid: (tiles [BLOCK_M, BLOCK_K], S). Few tiles share N among S programs each (`tiles/split_sum`). Work: 2 M K (N + R)
flops; reads W once for each tile of M, G once for each tile of K, writes dx once; where split, 4 S bytes an element of
the tiles more each way. A block's scale belongs to a row of W, here a term of the sum, so it goes into W's elements.
Rounds: c goes into W's element in fp32, which is rounded once to G's dtype (fp32 not at all); sums in fp32; dx once.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.columns_product import columns_product
from .tiles.dropout import kept
from .tiles.exact_dot import exact_dot, holds_tensor_memory
from .tiles.nf4_decode import load_exact_table, runs_ptx
from .tiles.split_sum import summed
from .tiles.tile_order import tile_order
from .tiles.weight_tile import block_tile, in_one_block, weight_tile


@triton.jit
def _low_rank_step(acc, q_ptr, a_ptr, offs_m, offs_k, r, M, K, R, TARGET: tl.constexpr, BLOCK_R: tl.constexpr):
    """acc + Q A over BLOCK_R of R from `r` on."""
    offs_r = r + tl.arange(0, BLOCK_R)
    mask_q = (offs_m < M)[:, None] & (offs_r < R)[None, :]
    q = tl.load(q_ptr + offs_m.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_q, other=0.0)
    mask_a = (offs_r < R)[:, None] & (offs_k < K)[None, :]
    a = tl.load(a_ptr + offs_r.to(tl.int64)[:, None] * K + offs_k[None, :], mask=mask_a, other=0.0)
    return exact_dot(q, a, acc, TARGET)  # [BLOCK_M, BLOCK_R] [BLOCK_R, BLOCK_K]


@triton.jit
def _low_rank(
    operands,
    dropout,
    first_m,
    first_k,
    M,
    K,
    R,
    rank,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """drop'(Q A) in fp32 [BLOCK_M, BLOCK_K] over the first `rank` of R; operands = (Q, A, seed), 0 without Q."""
    q_ptr, a_ptr, seed_ptr = operands
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    if q_ptr is not None:
        offs_m = first_m + tl.arange(0, BLOCK_M)
        offs_k = first_k + tl.arange(0, BLOCK_K)
        if holds_tensor_memory(TARGET):
            # no `for`, across which it would be held
            r = 0
            while r < rank:
                acc = _low_rank_step(acc, q_ptr, a_ptr, offs_m, offs_k, r, M, K, R, TARGET, BLOCK_R)
                r += BLOCK_R
        else:
            # one stage: copied ahead, Q would lie in shared memory with two lanes a bank
            for r in tl.range(0, rank, BLOCK_R, num_stages=1):
                acc = _low_rank_step(acc, q_ptr, a_ptr, offs_m, offs_k, r, M, K, R, TARGET, BLOCK_R)
        if seed_ptr is not None:
            threshold, keep_scale = dropout
            keep = kept(tl.load(seed_ptr), offs_m, first_k, threshold, BLOCK_M, BLOCK_K)
            acc = tl.where(keep, acc * keep_scale, 0.0)
    return acc


@triton.jit(do_not_specialize=["threshold"])
def lora_linear_grad_kernel(
    grad_y_ptr,
    w_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    c_ptr,
    q_ptr,
    a_ptr,
    seed_ptr,
    dx_ptr,
    parts_ptr,
    arrivals_ptr,
    M,
    N,
    K,
    R,
    share,
    stride_wn,
    stride_wk,
    threshold,
    keep_scale,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    ONE_BLOCK: tl.constexpr,
    TARGET: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    tile_m, tile_k = tile_order(tile, M, K, BLOCK_M, BLOCK_K, GROUP)
    first_m, first_k = tile_m * BLOCK_M, tile_k * BLOCK_K
    offs_m = first_m + tl.arange(0, BLOCK_M)
    offs_k = first_k + tl.arange(0, BLOCK_K)
    mask_m, mask_k = offs_m < M, offs_k < K
    first = split * share
    end = tl.minimum(first + share, N)
    scales = (absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr)
    low_rank, dropout = (q_ptr, a_ptr, seed_ptr), (threshold, keep_scale)
    # the first of the programs that share a tile adds the low-rank part
    rank = tl.where(split == 0, R, 0)
    NVIDIA: tl.constexpr = runs_ptx(TARGET)
    # larger tiles of tokens go to the tensor cores that read W from shared memory, where there are such
    ON_MMA: tl.constexpr = TARGET == "mma" or (NVIDIA and BLOCK_M < 64)
    FITS: tl.constexpr = ONE_BLOCK and BLOCK_K == 64 and BLOCK_N % (32 * WARPS) == 0
    if FITS and ON_MMA and grad_y_ptr.dtype.element_ty != tl.float32:
        acc = columns_product(
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
            BLOCK_SIZE,
            WARPS,
            BLOCK_M,
            BLOCK_N,
        )
        # last, while the product's registers are free
        acc += _low_rank(low_rank, dropout, first_m, first_k, M, K, R, rank, TARGET, BLOCK_M, BLOCK_K, BLOCK_R)
    else:
        acc = _low_rank(low_rank, dropout, first_m, first_k, M, K, R, rank, TARGET, BLOCK_M, BLOCK_K, BLOCK_R)
        if ONE_BLOCK:
            table = load_exact_table(levels_ptr, NVIDIA)
        rows_g = grad_y_ptr + offs_m.to(tl.int64) * N
        for n in range(first, end, BLOCK_N):
            offs_n = n + tl.arange(0, BLOCK_N)
            mask_n = offs_n < end
            mask_g = mask_m[:, None] & mask_n[None, :]
            grad_y = tl.load(rows_g[:, None] + offs_n[None, :], mask=mask_g, other=0.0)
            if ONE_BLOCK:
                # rows past the end repeat the last, times 0
                rows = tl.minimum(offs_n, N - 1)
                w = block_tile(w_ptr, table, scales, rows, first_k, K, BLOCK_SIZE, BLOCK_K, NVIDIA)
            else:
                rows, columns = offs_n[:, None], offs_k[None, :]
                mask_w = mask_n[:, None] & mask_k[None, :]
                w = weight_tile(w_ptr, levels_ptr, scales, rows, columns, mask_w, K, stride_wn, stride_wk, BLOCK_SIZE)
            if c_ptr is not None:
                w = w.to(tl.float32) * tl.load(c_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
            if BLOCK_SIZE > 0 or c_ptr is not None:
                w = w.to(grad_y_ptr.dtype.element_ty)
            acc = exact_dot(grad_y, w, acc, TARGET)  # [BLOCK_M, BLOCK_N] [BLOCK_N, BLOCK_K]
    mask = mask_m[:, None] & mask_k[None, :]
    at = offs_m.to(tl.int64)[:, None] * K + offs_k[None, :]
    place = tl.arange(0, BLOCK_M)[:, None] * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    acc, last = summed(acc, parts_ptr, arrivals_ptr, tile, split, place, mask, BLOCK_M * BLOCK_K)
    if last:
        tl.store(dx_ptr + at, acc.to(dx_ptr.dtype.element_ty), mask=mask)


def lora_linear_grad(
    grad_y,
    weight,
    c,
    q,
    a,
    seed,
    dx,
    parts,
    arrivals,
    M: int,
    N: int,
    K: int,
    R: int,
    share: int,
    dropout,
    config: LaunchConfig,
) -> KernelCall:
    """The launch over the whole of dx, ceil(N / share) programs a tile; `share` is a multiple of BLOCK_N.

    `dropout` is the keyword arguments threshold and keep_scale; `parts` and `arrivals` as in `tiles/split_sum`, None
    where share ≥ N.
    """
    tiles = triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(K, config["BLOCK_K"])
    return kernel_call(
        lora_linear_grad_kernel,
        (tiles, triton.cdiv(N, share)),
        grad_y_ptr=grad_y,
        **weight,
        c_ptr=c,
        q_ptr=q,
        a_ptr=a,
        seed_ptr=seed,
        dx_ptr=dx,
        parts_ptr=parts,
        arrivals_ptr=arrivals,
        M=M,
        N=N,
        K=K,
        R=R,
        share=share,
        ONE_BLOCK=in_one_block(weight["BLOCK_SIZE"], K, config["BLOCK_K"]),
        WARPS=config.num_warps,
        **dropout,
        **config.constexprs(),
        **config.options(),
    )
