"""W [N, K] from codes in one pass: level[code] · absmax of its block, both quantisations undone, rounded once.

    codes uint8 [ceil(NK / 2)]      scales as in `tiles/nf4_decode`      W bf16, fp16 or fp32, contiguous

Bit-identical to bitsandbytes: the products round on their own, so the kernel is compiled without contraction.
Grid: BLOCK bytes of codes a program. Reads 0.5 byte a weight and the scales, writes W.
"""

import triton
import triton.language as tl

from .launch_config import LaunchConfig
from .tiles.nf4_decode import block_scale


@triton.jit
def nf4_dequantize_kernel(
    w_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    decoded_ptr,
    elements,
    BLOCK_SIZE: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * BLOCK
    byte = first + tl.arange(0, BLOCK)
    mask = byte * 2 < elements
    codes = tl.load(w_ptr + byte, mask=mask, other=0).to(tl.int32)
    scales = (absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr)
    # a block is even, so both nibbles have one scale
    scale = block_scale(byte * 2 // BLOCK_SIZE, scales, mask)
    even = tl.load(levels_ptr + (codes >> 4)) * scale
    odd = tl.load(levels_ptr + (codes & 15)) * scale
    element = first * 2 + tl.arange(0, 2 * BLOCK)
    decoded = tl.reshape(tl.join(even, odd), (2 * BLOCK,))
    tl.store(decoded_ptr + element, decoded.to(decoded_ptr.dtype.element_ty), mask=element < elements)


def nf4_dequantize(weight, decoded, elements: int, config: LaunchConfig) -> None:
    """Launches over all codes."""
    parts = ("w_ptr", "levels_ptr", "absmax_ptr", "nested_absmax_ptr", "nested_levels_ptr", "offset_ptr", "BLOCK_SIZE")
    nf4_dequantize_kernel[(triton.cdiv((elements + 1) // 2, config["BLOCK"]),)](
        **{name: weight[name] for name in parts},
        decoded_ptr=decoded,
        elements=elements,
        **config.constexprs(),
        **config.options(contract=False),
    )
