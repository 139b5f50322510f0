"""out = drop(x): x [M, K], elements kept by the mask of `tiles/dropout` and divided by 1 − p, the others 0.

Grid: tiles [BLOCK_M, BLOCK_K]. Reads x, writes out once; a quarter of a Philox call an element. Rounds once, to x's
dtype.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.dropout import kept


@triton.jit(do_not_specialize=["threshold"])
def dropout_kernel(
    x_ptr,
    seed_ptr,
    out_ptr,
    M,
    K,
    threshold,
    keep_scale,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first_k = tl.program_id(1) * BLOCK_K
    offs_m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_k = first_k + tl.arange(0, BLOCK_K)
    mask = (offs_m < M)[:, None] & (offs_k < K)[None, :]
    at = offs_m.to(tl.int64)[:, None] * K + offs_k[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    keep = kept(tl.load(seed_ptr), offs_m, first_k, threshold, BLOCK_M, BLOCK_K)
    out = tl.where(keep, x * keep_scale, 0.0)
    tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=mask)


def dropout(x, seed, out, M: int, K: int, dropout, config: LaunchConfig) -> KernelCall:
    """The launch over the whole of out. `dropout` is the keyword arguments threshold and keep_scale."""
    return kernel_call(
        dropout_kernel,
        (triton.cdiv(M, config["BLOCK_M"]), triton.cdiv(K, config["BLOCK_K"])),
        x_ptr=x,
        seed_ptr=seed,
        out_ptr=out,
        M=M,
        K=K,
        **dropout,
        **config.constexprs(),
        **config.options(),
    )
