"""Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i for two or three 4-bit weights of one x and few tokens, in one launch.

    x [M, K] bf16 or fp16, contiguous       W_i [N_i, K] 4-bit codes, rows of whole blocks, all of one layout
    P_i [M, R_i] fp32, rows `stride_p` apart       B̂_i [N_i, R_i] fp32, contiguous       bias_i [N_i], of all or of none
    Y_i [M, N_i] in x's dtype, contiguous

Grid: (tiles of Y_0, then of Y_1 and Y_2, S); a tile is one of `lora_linear`. Work: that of the products one by one. One
launch because a few tokens take a GPU less time than a host needs to launch, and small products alone don't fill it: k
and v share K among fewer programs beside q.
Reference: `lorafam.reference`. Gradients: `lora_linear_grad`, `lora_factors_grad`, a weight at a time.
"""

from typing import Any

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .lora_linear import lora_linear_tile
from .tiles.nf4_decode import runs_ptx
from .tiles.scale_table import span_of

MEMBERS = 3


@triton.jit
def _chosen(which, first, second, third, ALIGNED: tl.constexpr, TARGET: tl.constexpr):
    """The member's pointer or size. ALIGNED: whether 16 divides the second's."""
    # or LLVM would select where to load an argument from, which takes it into local memory
    other = _opaque(second, ALIGNED, TARGET)
    if third is not None:
        other = tl.where(which == 1, other, third)
    return tl.where(which == 0, first, other)


@triton.jit
def _opaque(x, ALIGNED: tl.constexpr, TARGET: tl.constexpr):
    """x, which the compiler doesn't see through; what it knew of x's alignment it is told anew."""
    if runs_ptx(TARGET):
        if x.dtype.is_ptr():
            at = tl.inline_asm_elementwise(
                "mov.b64 $0, $1;", "=l,l", [x.to(tl.int64)], dtype=tl.int64, is_pure=True, pack=1
            )
            at = at.to(x.dtype)
        else:
            at = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.int32, is_pure=True, pack=1)
        # here, since before Triton 3.9 a call's result loses it
        return tl.multiple_of(at, 16) if ALIGNED else at
    else:
        # nothing may follow: Triton 3.6 goes on after an `if` that returned
        return x


@triton.jit
def lora_linear_group_kernel(
    x_ptr,
    levels_ptr,
    w_0_ptr,
    absmax_0_ptr,
    nested_absmax_0_ptr,
    nested_levels_0_ptr,
    offset_0_ptr,
    p_0_ptr,
    b_hat_0_ptr,
    bias_0_ptr,
    y_0_ptr,
    w_1_ptr,
    absmax_1_ptr,
    nested_absmax_1_ptr,
    nested_levels_1_ptr,
    offset_1_ptr,
    p_1_ptr,
    b_hat_1_ptr,
    bias_1_ptr,
    y_1_ptr,
    w_2_ptr,
    absmax_2_ptr,
    nested_absmax_2_ptr,
    nested_levels_2_ptr,
    offset_2_ptr,
    p_2_ptr,
    b_hat_2_ptr,
    bias_2_ptr,
    y_2_ptr,
    parts_ptr,
    arrivals_ptr,
    M,
    K,
    N_0,
    N_1,
    N_2,
    R_0,
    R_1,
    R_2,
    stride_p,
    share,
    BLOCK_SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    INVERSE_GAIN: tl.constexpr,
    ALIGNED_POINTERS: tl.constexpr,
    ALIGNED_SIZES: tl.constexpr,
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
    slot = tl.program_id(0)
    tiles_m = tl.cdiv(M, BLOCK_M)
    second = tiles_m * tl.cdiv(N_0, BLOCK_N)
    third = second + tiles_m * tl.cdiv(N_1, BLOCK_N)
    which = (slot >= second).to(tl.int32) + (slot >= third).to(tl.int32)
    absmax = _chosen(which, absmax_0_ptr, absmax_1_ptr, absmax_2_ptr, ALIGNED_POINTERS, TARGET)
    # Nones stand here and not in what a function returns: before Triton 3.7 none may return None
    scales = (absmax, None, None, None)
    if nested_absmax_0_ptr is not None:
        scales = (
            absmax,
            _chosen(which, nested_absmax_0_ptr, nested_absmax_1_ptr, nested_absmax_2_ptr, ALIGNED_POINTERS, TARGET),
            _chosen(which, nested_levels_0_ptr, nested_levels_1_ptr, nested_levels_2_ptr, ALIGNED_POINTERS, TARGET),
            _chosen(which, offset_0_ptr, offset_1_ptr, offset_2_ptr, ALIGNED_POINTERS, TARGET),
        )
    bias = None
    if bias_0_ptr is not None:
        bias = _chosen(which, bias_0_ptr, bias_1_ptr, bias_2_ptr, ALIGNED_POINTERS, TARGET)
    lora_linear_tile(
        slot - tl.where(which == 0, 0, tl.where(which == 1, second, third)),
        tl.program_id(1),
        tl.num_programs(1),
        slot,
        x_ptr,
        _chosen(which, w_0_ptr, w_1_ptr, w_2_ptr, ALIGNED_POINTERS, TARGET),
        levels_ptr,
        scales,
        _chosen(which, p_0_ptr, p_1_ptr, p_2_ptr, ALIGNED_POINTERS, TARGET),
        _chosen(which, b_hat_0_ptr, b_hat_1_ptr, b_hat_2_ptr, ALIGNED_POINTERS, TARGET),
        None,
        bias,
        _chosen(which, y_0_ptr, y_1_ptr, y_2_ptr, ALIGNED_POINTERS, TARGET),
        parts_ptr,
        arrivals_ptr,
        M,
        _chosen(which, N_0, N_1, N_2, ALIGNED_SIZES, TARGET),
        K,
        _chosen(which, R_0, R_1, R_2, ALIGNED_SIZES, TARGET),
        stride_p,
        share,
        0,
        0,
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


def lora_linear_group(
    x, members: list[dict[str, Any]], parts, arrivals, M: int, K: int, stride_p: int, share: int, config: LaunchConfig
) -> KernelCall:
    """The launch over all Y_i. A member: `weight` (the keyword arguments that describe W_i), p, b_hat, bias, y, N, R.

    `parts` and `arrivals` as in `tiles/split_sum`, None where share ≥ K.
    """
    first = members[0]["weight"]
    arguments: dict[str, Any] = {}
    tiles = 0
    for i in range(MEMBERS):
        there = i < len(members)
        member = members[i] if there else {}
        for name in ("w", "absmax", "nested_absmax", "nested_levels", "offset"):
            arguments[f"{name}_{i}_ptr"] = member["weight"][f"{name}_ptr"] if there else None
        for name in ("p", "b_hat", "bias", "y"):
            arguments[f"{name}_{i}_ptr"] = member.get(name)
        arguments[f"N_{i}"], arguments[f"R_{i}"] = member.get("N"), member.get("R")
        tiles += triton.cdiv(M, config["BLOCK_M"]) * triton.cdiv(member.get("N", 0), config["BLOCK_N"])
    of_second = [value for name, value in arguments.items() if name.endswith("_1_ptr")]
    return kernel_call(
        lora_linear_group_kernel,
        (tiles, triton.cdiv(K, share)),
        x_ptr=x,
        levels_ptr=first["levels_ptr"],
        **arguments,
        parts_ptr=parts,
        arrivals_ptr=arrivals,
        M=M,
        K=K,
        stride_p=stride_p,
        share=share,
        BLOCK_SIZE=first["BLOCK_SIZE"],
        PACKED=first["PACKED"],
        INVERSE_GAIN=first["INVERSE_GAIN"],
        ALIGNED_POINTERS=all(value.data_ptr() % 16 == 0 for value in of_second if value is not None),
        ALIGNED_SIZES=arguments["N_1"] % 16 == arguments["R_1"] % 16 == 0,
        **span_of(first, K, share, config),
        WARPS=config.num_warps,
        **config.constexprs(),
        **config.options(),
    )
