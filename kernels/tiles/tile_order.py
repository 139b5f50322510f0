"""The order of output tiles: a few rows of tiles together, so that programs that run at once share what they read."""

import triton
import triton.language as tl


@triton.jit
def tile_order(program, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP: tl.constexpr):
    """(tile of M, tile of N) of a program: down GROUP tiles of M, then the next tile of N."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    in_group = GROUP * tiles_n
    first_m = program // in_group * GROUP
    height = tl.minimum(tiles_m - first_m, GROUP)
    return first_m + program % in_group % height, program % in_group // height
