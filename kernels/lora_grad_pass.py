"""What needs the whole of G in one pass over it: Q, and the parts of dB̂, dm and dbias that a tile of tokens gives.

    Q = G (c ∘ B̂) [M, R]      dB̂ = c ∘ Σ_t b_parts[t]      dm = Σ_t dm_parts[t] / m      dbias = Σ_t dbias_parts[t]

    b_parts[t] = G_tᵀ P_t [N, R]      dm_parts[t] = Σ G_t ∘ (Y_t − bias) [N]      dbias_parts[t] = Σ G_t [N]

    G, Y [M, N] any float, contiguous; G_t, Y_t, P_t: the rows of tile t     P [M, R], B̂ [N, R] fp32, contiguous
    c, bias [N]      Q, b_parts [tiles of M, N, R], dm_parts, dbias_parts [tiles of M, N] fp32, contiguous

Grid: (tiles of M, S), S programs share N (`tiles/split_sum`, for Q). Work: 4 M N R flops. Reads G once where
`lora_project` and `lora_factors_grad` read it twice; the parts cost 8 N R bytes a tile of M, so it pays where that is
less than the tile itself, or where there is one tile. R at most BLOCK_R.
Rounds: fp32 sums (`tiles/exact_dot`); c ∘ B̂ once.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.exact_dot import exact_dot
from .tiles.split_sum import summed


@triton.jit
def lora_grad_pass_kernel(
    grad_y_ptr,
    p_ptr,
    b_hat_ptr,
    c_ptr,
    saved_y_ptr,
    bias_ptr,
    q_ptr,
    b_parts_ptr,
    dm_parts_ptr,
    dbias_parts_ptr,
    parts_ptr,
    arrivals_ptr,
    M,
    N,
    R,
    share,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    offs_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_r = tl.arange(0, BLOCK_R)
    mask_m, mask_r = offs_m < M, offs_r < R
    mask_q = mask_m[:, None] & mask_r[None, :]
    at_q = offs_m.to(tl.int64)[:, None] * R + offs_r[None, :]
    p = tl.load(p_ptr + at_q, mask=mask_q, other=0.0)  # [BLOCK_M, BLOCK_R]
    q = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    first = split * share
    end = tl.minimum(first + share, N)
    for n in range(first, end, BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N)
        mask_n = offs_n < end
        mask_g = mask_m[:, None] & mask_n[None, :]
        at_g = offs_m.to(tl.int64)[:, None] * N + offs_n[None, :]
        grad_y = tl.load(grad_y_ptr + at_g, mask=mask_g, other=0.0)  # [BLOCK_M, BLOCK_N]
        mask_b = mask_n[:, None] & mask_r[None, :]
        b_hat = tl.load(b_hat_ptr + offs_n.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_b, other=0.0)
        if c_ptr is not None:
            b_hat *= tl.load(c_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[:, None]
        q = exact_dot(grad_y, b_hat, q, TARGET)
        row = tile.to(tl.int64) * N + offs_n
        part = exact_dot(tl.trans(grad_y), p, tl.zeros((BLOCK_N, BLOCK_R), tl.float32), TARGET)
        tl.store(b_parts_ptr + row[:, None] * R + offs_r[None, :], part, mask=mask_b)
        if dm_parts_ptr is not None:
            y = tl.load(saved_y_ptr + at_g, mask=mask_g, other=0.0).to(tl.float32)
            if bias_ptr is not None:
                y -= tl.load(bias_ptr + offs_n, mask=mask_n, other=0.0).to(tl.float32)[None, :]
            tl.store(dm_parts_ptr + row, tl.sum(grad_y.to(tl.float32) * y, axis=0), mask=mask_n)
        if dbias_parts_ptr is not None:
            tl.store(dbias_parts_ptr + row, tl.sum(grad_y.to(tl.float32), axis=0), mask=mask_n)
    place = tl.arange(0, BLOCK_M)[:, None] * BLOCK_R + offs_r[None, :]
    q, last = summed(q, parts_ptr, arrivals_ptr, tile, split, place, mask_q, BLOCK_M * BLOCK_R)
    if last:
        tl.store(q_ptr + at_q, q, mask=mask_q)


def lora_grad_pass(
    grad_y,
    p,
    b_hat,
    c,
    saved_y,
    bias,
    q,
    b_parts,
    dm_parts,
    dbias_parts,
    parts,
    arrivals,
    M: int,
    N: int,
    R: int,
    share: int,
    config: LaunchConfig,
) -> KernelCall:
    """The launch over the whole of G, ceil(N / share) programs a tile of M; `share` is a multiple of BLOCK_N.

    `saved_y` and `bias` belong to `dm_parts`; it and `dbias_parts` may be None. `parts` and `arrivals` as in
    `tiles/split_sum`, None where share ≥ N.
    """
    return kernel_call(
        lora_grad_pass_kernel,
        (triton.cdiv(M, config["BLOCK_M"]), triton.cdiv(N, share)),
        grad_y_ptr=grad_y,
        p_ptr=p,
        b_hat_ptr=b_hat,
        c_ptr=c,
        saved_y_ptr=saved_y,
        bias_ptr=bias,
        q_ptr=q,
        b_parts_ptr=b_parts,
        dm_parts_ptr=dm_parts,
        dbias_parts_ptr=dbias_parts,
        parts_ptr=parts,
        arrivals_ptr=arrivals,
        M=M,
        N=N,
        R=R,
        share=share,
        **config.constexprs(),
        **config.options(contract=False),
    )
