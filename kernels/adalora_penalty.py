"""How far AdaLoRA's factors are from orthogonal, all factors of a model in one launch (arXiv 2303.10512, eq. 4):

    S = P Pᵀ − I [R, R]     d = ‖S‖_F          P [R, L]: A [r, K] as it is, B [N, r] transposed

    factors fp32, one after the other     S fp32, one after the other     d fp32 [T]
    segments int64 [T, 6]: first element, stride along R, along L, R, L, first of S

Grid: a factor a program. Work: 2 R² L flops; reads P twice for each pair of tiles of R. Rounds: fp32 sums
(`tiles/exact_dot`). Gradient: `adalora_penalty_grad`.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.exact_dot import exact_dot


@triton.jit
def adalora_penalty_kernel(
    factors_ptr,
    segments_ptr,
    deviations_ptr,
    distances_ptr,
    TARGET: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    segment = segments_ptr + tl.program_id(0) * 6
    p_ptr = factors_ptr + tl.load(segment)
    stride_r, stride_l = tl.load(segment + 1), tl.load(segment + 2)
    R, L = tl.load(segment + 3), tl.load(segment + 4)
    s_ptr = deviations_ptr + tl.load(segment + 5)
    squares = tl.zeros((BLOCK_R,), tl.float32)
    for i in range(0, R, BLOCK_R):
        offs_i = i + tl.arange(0, BLOCK_R)
        for j in range(0, R, BLOCK_R):
            offs_j = j + tl.arange(0, BLOCK_R)
            s = tl.zeros((BLOCK_R, BLOCK_R), tl.float32)
            for start in range(0, L, BLOCK_L):
                offs_l = start + tl.arange(0, BLOCK_L)
                mask_i = (offs_i < R)[:, None] & (offs_l < L)[None, :]
                at_i = offs_i[:, None] * stride_r + offs_l[None, :] * stride_l
                mask_j = (offs_l < L)[:, None] & (offs_j < R)[None, :]
                at_j = offs_j[None, :] * stride_r + offs_l[:, None] * stride_l
                p_i = tl.load(p_ptr + at_i, mask=mask_i, other=0.0)
                p_j = tl.load(p_ptr + at_j, mask=mask_j, other=0.0)
                s = exact_dot(p_i, p_j, s, TARGET)  # [BLOCK_R, BLOCK_L] [BLOCK_L, BLOCK_R]
            mask = (offs_i < R)[:, None] & (offs_j < R)[None, :]
            s = tl.where(mask & (offs_i[:, None] == offs_j[None, :]), s - 1.0, s)
            tl.store(s_ptr + offs_i[:, None] * R + offs_j[None, :], s, mask=mask)
            # beyond R the sums are zero
            squares += tl.sum(s * s, axis=1)
    tl.store(distances_ptr + tl.program_id(0), tl.sqrt_rn(tl.sum(squares, axis=0)))


def adalora_penalty(factors, segments, deviations, distances, T: int, config: LaunchConfig) -> KernelCall:
    """The launch over all factors."""
    return kernel_call(
        adalora_penalty_kernel,
        (T,),
        factors_ptr=factors,
        segments_ptr=segments,
        deviations_ptr=deviations,
        distances_ptr=distances,
        **config.constexprs(),
        **config.options(contract=False),
    )
