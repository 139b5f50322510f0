"""The second quantisation: 8-bit codes of centred block scales, 256 to a nested block.

    centred fp32 [B] (absmax − offset)     bounds fp32 [255] between the dynamic levels     steps = 65,535
    nested_absmax = max |centred| of a block
    v = clamp(centred / nested_absmax, −1, 1), moved to the nearest of `steps` equal steps over [−1, 1]
    code = the number of bounds below v

Bit-identical to bitsandbytes (which goes over that grid); a block of zeros gives codes 0.
Grid: a nested block a program.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig


@triton.jit
def absmax_quantize_kernel(
    centred_ptr,
    bounds_ptr,
    codes_ptr,
    nested_absmax_ptr,
    B,
    STEPS: tl.constexpr,
    TARGET: tl.constexpr,
    NESTED: tl.constexpr,
):
    offs = tl.program_id(0) * NESTED + tl.arange(0, NESTED)
    mask = offs < B
    centred = tl.load(centred_ptr + offs, mask=mask, other=0.0)
    largest = tl.max(tl.abs(centred), axis=0)
    value = centred * tl.div_rn(1.0, largest)
    # 0 · inf of a block of zeros is NaN, which the comparison lets through to −1
    value = tl.where(value > -1.0, tl.minimum(value, 1.0), -1.0)
    step = ((value + 1.0) * 0.5 * STEPS + 0.5).to(tl.int32).to(tl.float32)
    value = tl.div_rn(step * 2.0, STEPS) - 1.0
    below = tl.zeros((NESTED,), tl.int32)
    for bit in tl.static_range(8):
        candidate = below + (128 >> bit)
        below = tl.where(tl.load(bounds_ptr + candidate - 1) < value, candidate, below)
    tl.store(codes_ptr + offs, below.to(tl.uint8), mask=mask)
    tl.store(nested_absmax_ptr + tl.program_id(0), largest)


def absmax_quantize(centred, bounds, codes, nested_absmax, B: int, steps: int, config: LaunchConfig) -> KernelCall:
    """The launch over all nested blocks."""
    return kernel_call(
        absmax_quantize_kernel,
        (triton.cdiv(B, config["NESTED"]),),
        centred_ptr=centred,
        bounds_ptr=bounds,
        codes_ptr=codes,
        nested_absmax_ptr=nested_absmax,
        B=B,
        STEPS=float(steps),
        **config.constexprs(),
        **config.options(contract=False),
    )
