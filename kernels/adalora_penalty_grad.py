"""Gradients of the distances that `adalora_penalty` computes, all factors of a model in one launch:

    dP = (2 g / d) S P [R, L]          0 where d = 0

    factors, segments, S, d as in `adalora_penalty`     g fp32 [T]
    tiles int64 [X, 2]: factor, first of L              dP fp32, laid out as the factors

Grid: a tile of L of a factor a program, over the whole of R. Work: 2 R² L flops; reads P once for each tile of R.
Rounds: fp32 sums (`tiles/exact_dot`); the scale is applied to the sum.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.exact_dot import exact_dot


@triton.jit
def adalora_penalty_grad_kernel(
    factors_ptr,
    segments_ptr,
    tiles_ptr,
    deviations_ptr,
    distances_ptr,
    grad_distances_ptr,
    grads_ptr,
    TARGET: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    tile = tiles_ptr + tl.program_id(0) * 2
    factor, first_l = tl.load(tile), tl.load(tile + 1)
    segment = segments_ptr + factor * 6
    first, stride_r, stride_l = tl.load(segment), tl.load(segment + 1), tl.load(segment + 2)
    R, L = tl.load(segment + 3), tl.load(segment + 4)
    s_ptr = deviations_ptr + tl.load(segment + 5)
    distance = tl.load(distances_ptr + factor)
    scale = tl.where(distance > 0.0, 2.0 * tl.load(grad_distances_ptr + factor) / distance, 0.0)
    offs_l = first_l + tl.arange(0, BLOCK_L)
    mask_l = offs_l < L
    for i in range(0, R, BLOCK_R):
        offs_i = i + tl.arange(0, BLOCK_R)
        acc = tl.zeros((BLOCK_R, BLOCK_L), tl.float32)
        for j in range(0, R, BLOCK_R):
            offs_j = j + tl.arange(0, BLOCK_R)
            mask_s = (offs_i < R)[:, None] & (offs_j < R)[None, :]
            s = tl.load(s_ptr + offs_i[:, None] * R + offs_j[None, :], mask=mask_s, other=0.0)
            at = first + offs_j[:, None] * stride_r + offs_l[None, :] * stride_l
            p = tl.load(factors_ptr + at, mask=(offs_j < R)[:, None] & mask_l[None, :], other=0.0)
            acc = exact_dot(s, p, acc, TARGET)  # [BLOCK_R, BLOCK_R] [BLOCK_R, BLOCK_L]
        at = first + offs_i[:, None] * stride_r + offs_l[None, :] * stride_l
        tl.store(grads_ptr + at, acc * scale, mask=(offs_i < R)[:, None] & mask_l[None, :])


def adalora_penalty_grad(
    factors, segments, tiles, deviations, distances, grad_distances, grads, X: int, config: LaunchConfig
) -> KernelCall:
    """The launch over all tiles; they are BLOCK_L of `config` long."""
    return kernel_call(
        adalora_penalty_grad_kernel,
        (X,),
        factors_ptr=factors,
        segments_ptr=segments,
        tiles_ptr=tiles,
        deviations_ptr=deviations,
        distances_ptr=distances,
        grad_distances_ptr=grad_distances,
        grads_ptr=grads,
        **config.constexprs(),
        **config.options(),
    )
