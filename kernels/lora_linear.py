"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias in tiles, as Yᵀ = W xᵀ, for one token or many.

    x [M, K] bf16, fp16 or fp32, contiguous         W [N, K] dense with any strides, or 4-bit codes
    P [M, R], B̂ [N, R] fp32, contiguous             c, bias [N]          Y [M, N] in x's dtype, contiguous

Grid: (tiles [BLOCK_N, BLOCK_M], S). Few tiles share K among S programs each, and the last of them to come adds up
(`tiles/split_sum`). A tile's tokens go in CHUNKS, each multiplied with the same decoded W.
Work: 2 M N (K + R) flops; reads W once for each tile of M, x once for each tile of N, writes Y once; where split,
4 S bytes an element of the tiles more each way. Fused because the low-rank part costs a start value of the accumulator,
scale and bias a multiplication and an addition in registers, where separate operations would read and write Y three
times.
Rounds: sums in fp32, Y once; 4-bit weights as `tiles/weight_product` says.
Reference: `lorafam.reference`. Gradients: `lora_linear_grad`, `lora_factors_grad`.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.scale_table import span_of
from .tiles.split_sum import is_last, sum_of_parts
from .tiles.tile_order import tile_order
from .tiles.weight_product import low_rank_start, weight_product


@triton.jit
def _store(acc, c_ptr, bias_ptr, y_ptr, offs_n, offs_m, M, N):
    """Y's tile from the sums [BLOCK_N, tokens]."""
    mask_n = offs_n < N
    if c_ptr is not None:
        acc *= tl.load(c_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
    mask = mask_n[:, None] & (offs_m < M)[None, :]
    tl.store(y_ptr + offs_m.to(tl.int64)[None, :] * N + offs_n[:, None], acc.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def lora_linear_tile(
    tile,
    split,
    S,
    slot,
    x_ptr,
    w_ptr,
    levels_ptr,
    scales,
    p_ptr,
    b_hat_ptr,
    c_ptr,
    bias_ptr,
    y_ptr,
    parts_ptr,
    arrivals_ptr,
    M,
    N,
    K,
    R,
    stride_p,
    share,
    stride_wn,
    stride_wk,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    SPAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    TARGET: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUP: tl.constexpr,
):
    """What the `split`-th of S programs does for a tile of Y. P [M, R] has rows `stride_p` apart.

    `slot`: the tile's number among all of the launch; parts and arrivals are counted by it.
    """
    tile_m, tile_n = tile_order(tile, M, N, BLOCK_M, BLOCK_N, GROUP)
    first_m, first_n = tile_m * BLOCK_M, tile_n * BLOCK_N
    CHUNK: tl.constexpr = BLOCK_M // CHUNKS
    offs_n = first_n + tl.arange(0, BLOCK_N)
    acc = ()
    for chunk in tl.static_range(CHUNKS):
        if p_ptr is not None:
            offs_m = first_m + chunk * CHUNK + tl.arange(0, CHUNK)
            # the first of the programs that share a tile adds it
            rank = tl.where(split == 0, R, 0)
            acc = acc + (low_rank_start(b_hat_ptr, p_ptr, offs_n, offs_m, M, N, rank, R, stride_p, TARGET, BLOCK_R),)
        else:
            acc = acc + (tl.zeros((BLOCK_N, CHUNK), tl.float32),)
    first = split * share
    acc = weight_product(
        acc,
        x_ptr,
        w_ptr,
        levels_ptr,
        scales,
        first_n,
        first_m,
        first,
        tl.minimum(first + share, K),
        M,
        N,
        K,
        stride_wn,
        stride_wk,
        BLOCK_SIZE,
        PACKED,
        INVERSE_GAIN,
        SPAN,
        ALIGNED,
        TARGET,
        WARPS,
        BLOCK_N,
        BLOCK_K,
    )
    if parts_ptr is None:
        for chunk in tl.static_range(CHUNKS):
            offs_m = first_m + chunk * CHUNK + tl.arange(0, CHUNK)
            _store(acc[chunk], c_ptr, bias_ptr, y_ptr, offs_n, offs_m, M, N)
    else:
        SIZE: tl.constexpr = BLOCK_M * BLOCK_N
        place = tl.arange(0, CHUNK)[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        part = parts_ptr + (slot * S + split).to(tl.int64) * SIZE
        for chunk in tl.static_range(CHUNKS):
            there = (first_m + chunk * CHUNK + tl.arange(0, CHUNK) < M)[None, :]
            tl.store(part + chunk * CHUNK * BLOCK_N + place, acc[chunk], mask=there)
        if is_last(arrivals_ptr, slot, S):
            for chunk in tl.static_range(CHUNKS):
                offs_m = first_m + chunk * CHUNK + tl.arange(0, CHUNK)
                mask = tl.broadcast_to((offs_m < M)[None, :], (BLOCK_N, CHUNK))
                total = sum_of_parts(parts_ptr, slot, S, chunk * CHUNK * BLOCK_N + place, mask, SIZE)
                _store(total, c_ptr, bias_ptr, y_ptr, offs_n, offs_m, M, N)


@triton.jit
def lora_linear_kernel(
    x_ptr,
    w_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    p_ptr,
    b_hat_ptr,
    c_ptr,
    bias_ptr,
    y_ptr,
    parts_ptr,
    arrivals_ptr,
    M,
    N,
    K,
    R,
    share,
    stride_wn,
    stride_wk,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    SPAN: tl.constexpr,
    ALIGNED: tl.constexpr,
    TARGET: tl.constexpr,
    WARPS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    CHUNKS: tl.constexpr,
    GROUP: tl.constexpr,
):
    lora_linear_tile(
        tl.program_id(0),
        tl.program_id(1),
        tl.num_programs(1),
        tl.program_id(0),
        x_ptr,
        w_ptr,
        levels_ptr,
        (absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr),
        p_ptr,
        b_hat_ptr,
        c_ptr,
        bias_ptr,
        y_ptr,
        parts_ptr,
        arrivals_ptr,
        M,
        N,
        K,
        R,
        R,
        share,
        stride_wn,
        stride_wk,
        BLOCK_SIZE,
        PACKED,
        INVERSE_GAIN,
        SPAN,
        ALIGNED,
        TARGET,
        WARPS,
        BLOCK_M,
        BLOCK_N,
        BLOCK_K,
        BLOCK_R,
        CHUNKS,
        GROUP,
    )


def lora_linear(
    x, weight, p, b_hat, c, bias, y, parts, arrivals, M: int, N: int, K: int, R: int, share: int, config: LaunchConfig
) -> KernelCall:
    """The launch over the whole of Y, ceil(K / share) programs a tile; `share` is a multiple of BLOCK_K.

    `weight`: the keyword arguments that describe W (`backends.triton_gpu.weight`). `parts` and `arrivals` as in
    `tiles/split_sum`, None where share ≥ K.
    """
    tiles = triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"])
    return kernel_call(
        lora_linear_kernel,
        (tiles, triton.cdiv(K, share)),
        x_ptr=x,
        **weight,
        p_ptr=p,
        b_hat_ptr=b_hat,
        c_ptr=c,
        bias_ptr=bias,
        y_ptr=y,
        parts_ptr=parts,
        arrivals_ptr=arrivals,
        M=M,
        N=N,
        K=K,
        R=R,
        share=share,
        **span_of(weight, K, share, config),
        WARPS=config.num_warps,
        **config.constexprs(),
        **config.options(),
    )
