"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias in tiles, as Yᵀ = W xᵀ.

    x [M, K] bf16, fp16 or fp32, contiguous         W [N, K] dense with any strides, or 4-bit codes
    P [M, R], B̂ [N, R] fp32, contiguous             c, bias [N]          Y [M, N] in x's dtype, contiguous

Grid: one program a tile [BLOCK_N, BLOCK_M]. Work: 2 M N (K + R) flops; reads W once for each tile of M, x once for each
tile of N, writes Y once. Fused because the low-rank part costs a start value of the accumulator, scale and bias a
multiplication and an addition in registers, where separate operations would read and write Y three times.
Rounds: sums in fp32, Y once; 4-bit weights as `tiles/weight_product` says.
Reference: `lorafam.reference`. Gradients: `lora_linear_grad`, `lora_factors_grad`.
"""

import triton
import triton.language as tl

from .launch_config import LaunchConfig
from .tiles.tile_order import tile_order
from .tiles.weight_product import low_rank_start, weight_product


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
    M,
    N,
    K,
    R,
    stride_wn,
    stride_wk,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    GROUP: tl.constexpr,
):
    tile_m, tile_n = tile_order(tl.program_id(0), M, N, BLOCK_M, BLOCK_N, GROUP)
    offs_m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if p_ptr is not None:
        acc = low_rank_start(b_hat_ptr, p_ptr, offs_n, offs_m, M, N, R, TARGET, BLOCK_R)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    scales = (absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr)
    acc = weight_product(
        acc,
        x_ptr,
        w_ptr,
        levels_ptr,
        scales,
        offs_n,
        offs_m,
        0,
        K,
        M,
        N,
        K,
        stride_wn,
        stride_wk,
        BLOCK_SIZE,
        PACKED,
        INVERSE_GAIN,
        TARGET,
        BLOCK_K,
    )
    if c_ptr is not None:
        acc *= tl.load(c_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[:, None]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[:, None]
    mask = (offs_n < N)[:, None] & (offs_m < M)[None, :]
    tl.store(y_ptr + offs_m.to(tl.int64)[None, :] * N + offs_n[:, None], acc.to(y_ptr.dtype.element_ty), mask=mask)


def lora_linear(x, weight, p, b_hat, c, bias, y, M: int, N: int, K: int, R: int, config: LaunchConfig) -> None:
    """Launches over the whole of Y. `weight`: the keyword arguments that describe W (`backends.triton_gpu.weight`)."""
    grid = (triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(N, config["BLOCK_N"]),)
    lora_linear_kernel[grid](
        x_ptr=x,
        **weight,
        p_ptr=p,
        b_hat_ptr=b_hat,
        c_ptr=c,
        bias_ptr=bias,
        y_ptr=y,
        M=M,
        N=N,
        K=K,
        R=R,
        **config.constexprs(),
        **config.options(),
    )
