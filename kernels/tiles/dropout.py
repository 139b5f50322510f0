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
    # join puts its operands side by side in a new last dimension: (0, 2) beside (1, 3) reads 0, 1, 2, 3
    words = tl.join(tl.join(word0, word2), tl.join(word1, word3))
    return tl.reshape(words, (ROWS, COLUMNS)).to(tl.uint32, bitcast=True) >= threshold.to(tl.uint32, bitcast=True)
