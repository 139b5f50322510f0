"""W [N, K] from codes in one pass: c ∘ level[code] · absmax of its block, both quantisations undone, rounded once.

    codes uint8 [ceil(NK / 2)]      scales as in `tiles/nf4_decode`      c [N] or absent, where rows have whole blocks
    W bf16, fp16 or fp32, contiguous

Without c bit-identical to bitsandbytes: the products round on their own, so the kernel is compiled without contraction.
Grid: BLOCKS blocks a program. Reads 0.5 byte a weight and the scales, writes W.
"""

import triton
import triton.language as tl

from .kernel_call import KernelCall, kernel_call
from .launch_config import LaunchConfig
from .tiles.nf4_decode import block_scale, decode_exact, load_exact_table, runs_ptx


@triton.jit
def nf4_dequantize_kernel(
    w_ptr,
    levels_ptr,
    absmax_ptr,
    nested_absmax_ptr,
    nested_levels_ptr,
    offset_ptr,
    c_ptr,
    decoded_ptr,
    count,
    bytes_,
    elements,
    K,
    BLOCK_SIZE: tl.constexpr,
    TARGET: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    NVIDIA: tl.constexpr = runs_ptx(TARGET)
    table = load_exact_table(levels_ptr, NVIDIA)
    first = tl.program_id(0) * BLOCKS
    block = first + tl.arange(0, BLOCKS)
    scale = block_scale(block, (absmax_ptr, nested_absmax_ptr, nested_levels_ptr, offset_ptr), block < count)
    if c_ptr is not None:
        row = block // (K // BLOCK_SIZE)
        scale *= tl.load(c_ptr + row, mask=block < count, other=0.0).to(tl.float32)
    HALF: tl.constexpr = BLOCKS * BLOCK_SIZE // 2
    byte = first.to(tl.int64) * (BLOCK_SIZE // 2) + tl.arange(0, HALF)
    codes = tl.load(w_ptr + byte, mask=byte < bytes_, other=0)
    even, odd = decode_exact(codes.reshape(BLOCKS, BLOCK_SIZE // 2), table, NVIDIA)
    decoded = tl.join(even * scale[:, None], odd * scale[:, None]).reshape(2 * HALF)
    element = first.to(tl.int64) * BLOCK_SIZE + tl.arange(0, 2 * HALF)
    tl.store(decoded_ptr + element, decoded.to(decoded_ptr.dtype.element_ty), mask=element < elements)


def nf4_dequantize(weight, c, decoded, N: int, K: int, config: LaunchConfig) -> KernelCall:
    """The launch over all codes. BLOCKS is for blocks of 64: as many weights a program for any block size."""
    parts = ("w_ptr", "levels_ptr", "absmax_ptr", "nested_absmax_ptr", "nested_levels_ptr", "offset_ptr", "BLOCK_SIZE")
    size = weight["BLOCK_SIZE"]
    blocks = max(1, config["BLOCKS"] * 64 // size)
    count = triton.cdiv(N * K, size)
    return kernel_call(
        nf4_dequantize_kernel,
        (triton.cdiv(count, blocks),),
        **{name: weight[name] for name in parts},
        c_ptr=c,
        decoded_ptr=decoded,
        count=count,
        bytes_=(N * K + 1) // 2,
        elements=N * K,
        K=K,
        **{**config.constexprs(), "BLOCKS": blocks},
        **config.options(contract=False),
    )
