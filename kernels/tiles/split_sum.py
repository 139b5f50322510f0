"""The sum of a tile over the programs that share it, formed by the one that comes last.

Where there are too few output tiles to fill a device, the range of a sum is split, and each of `S` programs leaves its
part in memory. The one that finds all others done adds the parts in order: the same bits whoever comes last, which
atomic additions would not give. One launch, no second pass.

    parts fp32 [tiles · S, size of a tile]      arrivals int32 [tiles], zero before and after
"""

import triton
import triton.language as tl


@triton.jit
def is_last(arrivals_ptr, tile, S):
    """Whether all of a tile's programs have stored their parts; true for one program."""
    # all threads' stores before the count, which releases them; the last acquires those of others, past its cache
    tl.debug_barrier()
    last = tl.atomic_add(arrivals_ptr + tile, 1, sem="acq_rel") == S - 1
    if last:
        tl.store(arrivals_ptr + tile, 0)
    return last


@triton.jit
def sum_of_parts(parts_ptr, tile, S, offsets, mask, SIZE: tl.constexpr):
    """Σ over S of the elements at `offsets` of a tile's parts, each of SIZE elements; 0 where `mask` is false."""
    total = tl.zeros(offsets.shape, tl.float32)
    part = parts_ptr + tile.to(tl.int64) * S * SIZE
    for _ in range(S):
        total += tl.load(part + offsets, mask=mask, other=None if mask is None else 0.0)
        part += SIZE
    return total


@triton.jit
def summed(acc, parts_ptr, arrivals_ptr, tile, split, place, mask, SIZE: tl.constexpr):
    """(the sum over the programs that share a tile, whether this one has it): acc itself where there are no parts.

    `place` [like acc]: where its elements lie in a part of SIZE; outside `mask` a part is neither written nor read.
    """
    last = True
    if parts_ptr is not None:
        S = tl.num_programs(1)
        tl.store(parts_ptr + (tile * S + split).to(tl.int64) * SIZE + place, acc, mask=mask)
        last = is_last(arrivals_ptr, tile, S)
        if last:
            acc = sum_of_parts(parts_ptr, tile, S, place, mask, SIZE)
    return acc, last
