"""Parts of x Wᵀ for a few tokens: program (n, s) sums its share of K for BLOCK_N output features.

    parts[s] = x[:, share s] W[:, share s]ᵀ         fp32 [SPLIT_K, M, N]

With a few tokens there are too few output tiles to fill a device, so K is split; `split_sum` adds the shares in order,
which atomics would not. Operands as in `lora_linear`; M ≤ BLOCK_M.
Work: 2 M N K flops; reads W once (0.516 bytes a weight in NF4 with double quantisation), x once for each tile of N;
writes 4 M N SPLIT_K bytes.
"""

import triton
import triton.language as tl

from .launch_config import LaunchConfig
from .tiles.weight_product import weight_product


@triton.jit
def lora_decode_kernel(
    x_ptr,
    w_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    parts_ptr,
    M,
    N,
    K,
    share,
    stride_wn,
    stride_wk,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    split = tl.program_id(1)
    offs_m = tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    scales = (absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr)
    first = split * share
    acc = weight_product(
        tl.zeros((BLOCK_N, BLOCK_M), tl.float32),
        x_ptr,
        w_ptr,
        levels_ptr,
        scales,
        offs_n,
        offs_m,
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
        TARGET,
        BLOCK_K,
    )
    mask = (offs_n < N)[:, None] & (offs_m < M)[None, :]
    row = split.to(tl.int64) * M + offs_m
    tl.store(parts_ptr + row[None, :] * N + offs_n[:, None], acc, mask=mask)


def lora_decode(x, weight, parts, M: int, N: int, K: int, share: int, config: LaunchConfig) -> None:
    """Launches ceil(K / share) parts; `share`, a multiple of BLOCK_K, is the range of K of one."""
    lora_decode_kernel[(triton.cdiv(N, config["BLOCK_N"]), triton.cdiv(K, share))](
        x_ptr=x,
        **weight,
        parts_ptr=parts,
        M=M,
        N=N,
        K=K,
        share=share,
        **config.constexprs(),
        **config.options(),
    )
