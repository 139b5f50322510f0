"""The dropout mask of a tile: Philox4x32-10, key = seed, counter = (row, column // 4), word column % 4.

The mask of an element depends on its row, its column and the seed alone, so any tile regenerates its part.

    kept             of what isn't a product's operand: an accumulator, a tile to be stored
    operand_kept     of an operand. After a join Triton reads it from shared memory in wider pieces, whose lanes meet in
                     a bank; four bits and a choice of one cost nothing where a thread has all four
"""

import triton
import triton.language as tl


@triton.jit
def _words(seed, rows, first_column, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Four words, each [ROWS, COLUMNS / 4]."""
    groups = first_column // 4 + tl.arange(0, COLUMNS // 4)
    row, group = tl.broadcast(rows[:, None].to(tl.uint32), groups[None, :].to(tl.uint32))
    zero = tl.zeros((ROWS, COLUMNS // 4), tl.uint32)
    return tl.philox(seed, row, group, zero, zero, 10)


@triton.jit
def kept(seed, rows, first_column, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether rows [ROWS] × columns first_column … + COLUMNS are kept: word >= threshold; first_column in fours.

    `threshold` is floor(p 2³²) as the int32 of the same bits.
    """
    word0, word1, word2, word3 = _words(seed, rows, first_column, ROWS, COLUMNS)
    # join puts its operands side by side in a new last dimension: (0, 2) beside (1, 3) reads 0, 1, 2, 3
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return tl.reshape(words, (ROWS, COLUMNS)).to(tl.uint32, bitcast=True) >= threshold.to(tl.uint32, bitcast=True)


@triton.jit
def operand_kept(seed, rows, first_column, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The same for an operand."""
    word0, word1, word2, word3 = _words(seed, rows, first_column, ROWS, COLUMNS)
    threshold = threshold.to(tl.uint32, bitcast=True)
    bits = (word0 >= threshold).to(tl.int32)
    bits |= (word1 >= threshold).to(tl.int32) << 1
    bits |= (word2 >= threshold).to(tl.int32) << 2
    bits |= (word3 >= threshold).to(tl.int32) << 3
    bits = tl.broadcast_to(bits[:, :, None], (ROWS, COLUMNS // 4, 4)).reshape(ROWS, COLUMNS)
    return (bits >> (tl.arange(0, COLUMNS) % 4)[None, :]) & 1 != 0
