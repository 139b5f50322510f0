"""4-bit codes and absmax of a weight's blocks: code = nearest level to w / absmax, the lower at a tie.

    w flattened, bf16, fp16 or fp32      bounds fp32 [15] between the levels in ascending order, order int32 [16]: codes
    codes uint8 [ceil(count / 2)], the even element in the high nibble      absmax fp32 [ceil(count / BLOCK_SIZE)]

Bit-identical to bitsandbytes: whole blocks are multiplied by the reciprocal of absmax, a shorter last one is divided.
Grid: BLOCKS blocks a program. Reads w once, writes 0.5 byte a weight and absmax.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig


@triton.jit
def nf4_quantize_kernel(
    w_ptr,
    bounds_ptr,
    order_ptr,
    codes_ptr,
    absmax_ptr,
    count,
    SMALLEST: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    element = block[:, None] * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)[None, :]
    w = tl.load(w_ptr + element, mask=element < count, other=0.0).to(tl.float32)  # [BLOCKS, BLOCK_SIZE]
    absmax = tl.max(tl.abs(w), axis=1)
    # fp32 by name: below the smallest normal number a Python float is fp64 before Triton 3.9
    floored = tl.maximum(absmax, tl.full((), SMALLEST, tl.float32))
    whole = (block + 1) * BLOCK_SIZE <= count
    product = w * tl.div_rn(1.0, floored)[:, None]
    quotient = tl.div_rn(w, tl.broadcast_to(floored[:, None], (BLOCKS, BLOCK_SIZE)))
    scaled = tl.where(whole[:, None], product, quotient)
    found = tl.zeros((BLOCKS, BLOCK_SIZE), tl.int32)
    for i in tl.static_range(15):
        found += (scaled > tl.load(bounds_ptr + i)).to(tl.int32)
    code = tl.load(order_ptr + found)
    even, odd = tl.split(tl.reshape(code, (BLOCKS, BLOCK_SIZE // 2, 2)))
    byte = block[:, None] * (BLOCK_SIZE // 2) + tl.arange(0, BLOCK_SIZE // 2)[None, :]
    tl.store(codes_ptr + byte, (even * 16 + odd).to(tl.uint8), mask=byte * 2 < count)
    tl.store(absmax_ptr + block, tl.where(whole, absmax, floored), mask=block * BLOCK_SIZE < count)


def nf4_quantize(
    w, bounds, order, codes, absmax, count: int, smallest: float, block_size: int, config: LaunchConfig
) -> KernelCall:
    """The launch over all blocks."""
    return kernel_call(
        nf4_quantize_kernel,
        (triton.cdiv(triton.cdiv(count, block_size), config["BLOCKS"]),),
        w_ptr=w,
        bounds_ptr=bounds,
        order_ptr=order,
        codes_ptr=codes,
        absmax_ptr=absmax,
        count=count,
        SMALLEST=smallest,
        BLOCK_SIZE=block_size,
        **config.constexprs(),
        **config.options(contract=False),
    )
