"""P = x Aᵀ [M, r] in fp32: tokens in registers, rows of A where they lie; few tokens by dot products along those rows.

Sums of `_PIECE` products are formed apart.
"""

from __future__ import annotations

import torch

from . import dense_few_tokens, parallel
from .compiled import compiled
from .decoding import IN_ORDER
from .memory import clear, load_float, store_float
from .multiply import add_matrix_tile
from .pack import pack_columns
from .parallel import argument, my_scratch, next_part
from .processor import Processor

Tensor = torch.Tensor
# with fewer, registers of tokens would be mostly empty
_FEW = 8
# columns that are packed at a time
_TERMS, _PIECE = 128, 32


@compiled
def _project(lanes: int, height: int, registers: int, narrow: int, sources: int):
    width = registers * lanes

    def kernel(data: int) -> None:
        x, tokens, columns = argument(data, 0), argument(data, 1), argument(data, 2)
        a, rank, out = argument(data, 3), argument(data, 4), argument(data, 5)
        tiles = (rank + height - 1) // height
        packed = my_scratch(data)
        sums = packed + 4 * width * _TERMS
        part = next_part(data)
        while part >= 0 and sources:
            first = part * width
            clear(sums, tiles * height * width)
            for k in range(0, columns, _TERMS):
                last = min(k + _TERMS, columns)
                pack_columns(x, tokens, columns, 0, first, k, last, packed, lanes, width, IN_ORDER, narrow)
                for tile in range(tiles):
                    row = tile * height
                    for piece in range(k, last, _PIECE):
                        add_matrix_tile(
                            sums + 4 * width * row,
                            a + 4 * (row * columns + piece),
                            4 * columns,
                            rank - 1 - row,
                            packed + 4 * width * (piece - k),
                            min(_PIECE, last - piece),
                            lanes,
                            height,
                            registers,
                        )
            for token in range(min(width, tokens - first)):
                for j in range(rank):
                    store_float(out + 4 * ((first + token) * rank + j), load_float(sums + 4 * (j * width + token)))
            part = next_part(data)

    return kernel


def project(x: Tensor, A: Tensor, P: Tensor, cpu: Processor) -> None:
    """Into P; x [M, K] in fp32 or bf16, A [r, K] and P in fp32, all contiguous."""
    (tokens, columns), rank = x.shape, A.shape[0]
    if tokens <= _FEW and x.dtype == torch.float32:
        if P.numel():
            dense_few_tokens.forward(x, A, None, None, None, None, P, cpu)
        return
    registers = 1 if tokens <= cpu.lanes else 2
    height = cpu.lanes // registers
    width = registers * cpu.lanes
    entry = _project(cpu.lanes, height, registers, int(x.dtype == torch.bfloat16))
    scratch = 4 * width * (_TERMS + -(-rank // height) * height)
    arguments = (x.data_ptr(), tokens, columns, A.data_ptr(), rank, P.data_ptr())
    parallel.run(entry, arguments, -(-tokens // width) if rank else 0, scratch)
