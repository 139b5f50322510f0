"""The dropout mask of a tile: Philox4x32-10, key = seed, counter = (row, column // 4), word column % 4.

The mask of an element depends on its row, its column and the seed alone, so any tile regenerates its part.
"""

import triton
import triton.language as tl


@triton.jit
def kept(seed, rows, first_column, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Whether rows [ROWS] × columns first_column … + COLUMNS are kept: word >= threshold; first_column in fours.

    `threshold` is floor(p 2³²) as the int32 of the same bits.
    """
    groups = first_column // 4 + tl.arange(0, COLUMNS // 4)
    row, group = tl.broadcast(rows[:, None].to(tl.uint32), groups[None, :].to(tl.uint32))
    zero = tl.zeros((ROWS, COLUMNS // 4), tl.uint32)
    word0, word1, word2, word3 = tl.philox(seed, row, group, zero, zero, 10)
    threshold = threshold.to(tl.uint32, bitcast=True)
    # four bits and a choice of one cost nothing where a thread has all four; after a join Triton would read what is
    # masked in wider pieces, which meet in a bank of shared memory
    bits = (word0 >= threshold).to(tl.int32)
    bits |= (word1 >= threshold).to(tl.int32) << 1
    bits |= (word2 >= threshold).to(tl.int32) << 2
    bits |= (word3 >= threshold).to(tl.int32) << 3
    bits = tl.broadcast_to(bits[:, :, None], (ROWS, COLUMNS // 4, 4)).reshape(ROWS, COLUMNS)
    return (bits >> (tl.arange(0, COLUMNS) % 4)[None, :]) & 1 != 0
