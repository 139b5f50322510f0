"""A tile of the base weight W [N, K], dense or 4-bit: at any rows and columns, or whole columns of one block."""

import triton
import triton.language as tl

from .nf4_decode import block_scale, decode_exact


@triton.jit
def weight_tile(w_ptr, levels_ptr, scales, rows, columns, mask, K, stride_wn, stride_wk, BLOCK_SIZE: tl.constexpr):
    """W at rows [I, 1] and columns [1, J] (or any shapes that broadcast), 0 where `mask` is false.

    Dense (BLOCK_SIZE 0): in W's dtype. 4-bit: level · absmax in fp32, the value bitsandbytes decodes to.
    """
    if BLOCK_SIZE == 0:
        return tl.load(w_ptr + rows.to(tl.int64) * stride_wn + columns.to(tl.int64) * stride_wk, mask=mask, other=0.0)
    else:
        element = rows.to(tl.int64) * K + columns
        byte = tl.load(w_ptr + element // 2, mask=mask, other=0).to(tl.int32)
        code = tl.where(element % 2 == 0, byte >> 4, byte & 15)
        return tl.load(levels_ptr + code) * block_scale(element // BLOCK_SIZE, scales, mask)


def in_one_block(block_size: int, K: int, columns: int) -> bool:
    """Whether `block_tile` reads so many columns of a W with K of them: each row's lie in one 4-bit block."""
    return block_size > 0 and K % block_size == 0 and block_size % columns == 0


@triton.jit
def block_tile(
    w_ptr, table, scales, rows, first_k, K, BLOCK_SIZE: tl.constexpr, COLUMNS: tl.constexpr, NVIDIA: tl.constexpr
):
    """level · absmax in fp32 [I, COLUMNS] at rows [I] and columns first_k …, which lie in one block: a scale a row.

    BLOCK_SIZE divides K. `table`: of `load_exact_table`.
    """
    byte = rows.to(tl.int64)[:, None] * (K // 2) + first_k // 2 + tl.arange(0, COLUMNS // 2)[None, :]
    even, odd = decode_exact(tl.load(w_ptr + byte), table, NVIDIA)
    block = rows.to(tl.uint32) * (K // BLOCK_SIZE) + first_k // BLOCK_SIZE
    scale = block_scale(block, scales, None)[:, None]
    return tl.join(even * scale, odd * scale).reshape(rows.shape[0], COLUMNS)
