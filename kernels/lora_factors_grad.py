"""A factor's gradient, and the sums over tokens that go with it, in one pass over X [M, C]:

    grad = s ∘ drop(X)ᵀ F [C, R]         dbias = Σ X [C]         dm = Σ X ∘ (Y − bias) / m [C]

    dB̂ = c ∘ (Gᵀ P)     X = G, F = P, s = c                      dAᵀ = drop(x)ᵀ Q     X = x, F = Q, no sums

    X, Y [M, C] any float, contiguous      F [M, R] fp32, contiguous      s, bias, m [C]      grad fp32, any strides

Grid: (tiles of C and R, S), S programs share the tokens (`tiles/split_sum`); the first tile of R forms the sums. Work:
2 M C R flops; reads X once for each tile of R, F once for each tile of C, Y once; where split, 4 S bytes an element of
the tiles more each way.
Rounds: fp32 sums (`tiles/exact_dot`); the scale is applied to the sum.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.dropout import operand_kept
from .tiles.exact_dot import exact_dot
from .tiles.split_sum import is_last, sum_of_parts


@triton.jit(do_not_specialize=["threshold"])
def lora_factors_grad_kernel(
    x_ptr,
    f_ptr,
    s_ptr,
    seed_ptr,
    saved_y_ptr,
    bias_ptr,
    magnitude_ptr,
    grad_ptr,
    dm_ptr,
    dbias_ptr,
    parts_ptr,
    arrivals_ptr,
    M,
    C,
    R,
    share,
    stride_gc,
    stride_gr,
    threshold,
    keep_scale,
    TARGET: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    tile, split = tl.program_id(0), tl.program_id(1)
    tiles_r = tl.cdiv(R, BLOCK_R)
    first_c = tile // tiles_r * BLOCK_C
    offs_c = first_c + tl.arange(0, BLOCK_C)
    offs_r = tile % tiles_r * BLOCK_R + tl.arange(0, BLOCK_R)
    mask_c = offs_c < C
    acc = tl.zeros((BLOCK_C, BLOCK_R), tl.float32)
    dm = tl.zeros((BLOCK_C,), tl.float32)
    dbias = tl.zeros((BLOCK_C,), tl.float32)
    first = split * share
    end = tl.minimum(first + share, M)
    for m in range(first, end, BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        mask_m = offs_m < end
        mask_x = mask_m[:, None] & mask_c[None, :]
        at = offs_m.to(tl.int64)[:, None] * C + offs_c[None, :]
        x = tl.load(x_ptr + at, mask=mask_x, other=0.0)  # [BLOCK_M, BLOCK_C]
        if dm_ptr is not None:
            y = tl.load(saved_y_ptr + at, mask=mask_x, other=0.0).to(tl.float32)
            if bias_ptr is not None:
                y -= tl.load(bias_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[None, :]
            dm += tl.sum(x.to(tl.float32) * y, axis=0)
        if dbias_ptr is not None:
            dbias += tl.sum(x.to(tl.float32), axis=0)
        if seed_ptr is not None:
            x = tl.where(operand_kept(tl.load(seed_ptr), offs_m, first_c, threshold, BLOCK_M, BLOCK_C), x, 0.0)
        mask_f = mask_m[:, None] & (offs_r < R)[None, :]
        f = tl.load(f_ptr + offs_m.to(tl.int64)[:, None] * R + offs_r[None, :], mask=mask_f, other=0.0)
        acc = exact_dot(tl.trans(x), f, acc, TARGET)  # [BLOCK_C, BLOCK_M] [BLOCK_M, BLOCK_R]
    last = True
    if parts_ptr is not None:
        # a part is the tile, then dm's and dbias's
        SIZE: tl.constexpr = BLOCK_C * (BLOCK_R + 2)
        S = tl.num_programs(1)
        place = tl.arange(0, BLOCK_C)
        places = place[:, None] * BLOCK_R + tl.arange(0, BLOCK_R)[None, :]
        part = parts_ptr + (tile * S + split).to(tl.int64) * SIZE
        tl.store(part + places, acc)
        if dm_ptr is not None:
            tl.store(part + BLOCK_C * BLOCK_R + place, dm)
        if dbias_ptr is not None:
            tl.store(part + BLOCK_C * (BLOCK_R + 1) + place, dbias)
        last = is_last(arrivals_ptr, tile, S)
    if last:
        if parts_ptr is not None:
            acc = sum_of_parts(parts_ptr, tile, S, places, None, SIZE)
            if dm_ptr is not None:
                dm = sum_of_parts(parts_ptr, tile, S, BLOCK_C * BLOCK_R + place, None, SIZE)
            if dbias_ptr is not None:
                dbias = sum_of_parts(parts_ptr, tile, S, BLOCK_C * (BLOCK_R + 1) + place, None, SIZE)
        if seed_ptr is not None:
            acc *= keep_scale
        if s_ptr is not None:
            acc *= tl.load(s_ptr + offs_c, mask=mask_c, other=0.0).to(tl.float32)[:, None]
        mask = mask_c[:, None] & (offs_r < R)[None, :]
        at = offs_c.to(tl.int64)[:, None] * stride_gc + offs_r.to(tl.int64)[None, :] * stride_gr
        tl.store(grad_ptr + at, acc, mask=mask)
        if tile % tiles_r == 0:
            if dm_ptr is not None:
                magnitude = tl.load(magnitude_ptr + offs_c, mask=mask_c, other=1.0).to(tl.float32)
                tl.store(dm_ptr + offs_c, tl.div_rn(dm, magnitude), mask=mask_c)
            if dbias_ptr is not None:
                tl.store(dbias_ptr + offs_c, dbias, mask=mask_c)


def lora_factors_grad(
    x,
    f,
    s,
    seed,
    saved_y,
    bias,
    magnitude,
    grad,
    dm,
    dbias,
    parts,
    arrivals,
    M: int,
    C: int,
    R: int,
    share: int,
    strides,
    dropout,
    config: LaunchConfig,
) -> KernelCall:
    """The launch over the whole gradient, ceil(M / share) programs a tile; `share` is a multiple of BLOCK_M.

    `strides` are grad's along C and R; `dropout` has threshold and keep_scale; `parts` and `arrivals` as in
    `tiles/split_sum`, None where share ≥ M.
    """
    tiles = triton.cdiv(C, config["BLOCK_C"]) * triton.cdiv(R, config["BLOCK_R"])
    return kernel_call(
        lora_factors_grad_kernel,
        (tiles, max(1, triton.cdiv(M, share))),
        x_ptr=x,
        f_ptr=f,
        s_ptr=s,
        seed_ptr=seed,
        saved_y_ptr=saved_y,
        bias_ptr=bias,
        magnitude_ptr=magnitude,
        grad_ptr=grad,
        dm_ptr=dm,
        dbias_ptr=dbias,
        parts_ptr=parts,
        arrivals_ptr=arrivals,
        M=M,
        C=C,
        R=R,
        share=share,
        stride_gc=strides[0],
        stride_gr=strides[1],
        **dropout,
        **config.constexprs(),
        **config.options(contract=False),
    )
