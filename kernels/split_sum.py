"""Y = c ∘ (Σ_s parts[s] + P B̂ᵀ) + bias: the second pass of the decode product, parts added in order.

    parts [S, M, N] fp32      P [M, R], B̂ [N, R] fp32      c, bias [N]      Y [M, N]

Grid: tiles [BLOCK_N, BLOCK_M] of Y. Reads 4 S M N bytes and the factors, writes Y.
"""

import triton
import triton.language as tl

from .launch_config import LaunchConfig
from .tiles.weight_product import low_rank_start


@triton.jit
def split_sum_kernel(
    summed_ptr,
    p_ptr,
    b_hat_ptr,
    c_ptr,
    bias_ptr,
    y_ptr,
    S,
    M,
    N,
    R,
    stride_s,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    offs_m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (offs_n < N)[:, None] & (offs_m < M)[None, :]
    if p_ptr is not None:
        acc = low_rank_start(b_hat_ptr, p_ptr, offs_n, offs_m, M, N, R, TARGET, BLOCK_R)
    else:
        acc = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    at = offs_m.to(tl.int64)[None, :] * N + offs_n[:, None]
    part = at
    for _ in range(S):
        acc += tl.load(summed_ptr + part, mask=mask, other=0.0)
        part += stride_s
    if c_ptr is not None:
        acc *= tl.load(c_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[:, None]
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + offs_n, mask=offs_n < N, other=0.0).to(tl.float32)[:, None]
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=mask)


def split_sum(summed, p, b_hat, c, bias, y, S: int, M: int, N: int, R: int, config: LaunchConfig) -> None:
    """Launches over the whole of Y."""
    split_sum_kernel[(triton.cdiv(N, config["BLOCK_N"]), triton.cdiv(M, config["BLOCK_M"]))](
        summed_ptr=summed,
        p_ptr=p,
        b_hat_ptr=b_hat,
        c_ptr=c,
        bias_ptr=bias,
        y_ptr=y,
        S=S,
        M=M,
        N=N,
        R=R,
        stride_s=M * N,
        **config.constexprs(),
        **config.options(),
    )
