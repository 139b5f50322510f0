"""Groups of 2 · lanes 4-bit weights to memory, as Numba intrinsics.

A group's even weights (high nibbles) and odd ones fill a register each; nothing is interleaved unless asked for. A
block's scale goes into the sixteen levels before the look-up, so a decoded weight is level · scale rounded once, as
bitsandbytes has it.

Numba keeps an intrinsic's code by its signature, so the signature has the constants in it.
"""

from __future__ import annotations

from typing import Any

from numba import njit, types
from numba.extending import intrinsic

from ...compat.numba import signature
from .vectors import Vectors

# how decoded weights are stored: evens and odds apart, in their own order, or as pairs of bf16
APART, IN_ORDER, PAIRS = 0, 1, 2
# and dense ones, in their own order: as they are, in fp32, or widened from bf16
DENSE, DENSE_BF16 = 3, 4


@njit
def apart(column: int, lanes: int) -> int:
    """Where a column lies if of each group the even ones come first."""
    inside = column % (2 * lanes)
    return column - inside + inside // 2 + inside % 2 * lanes


@intrinsic(prefer_literal=True)
def decode_groups(
    typingctx: Any,
    codes: Any,
    levels: Any,
    scale: Any,
    out: Any,
    odd_offset: Any,
    advance: Any,
    count: Any,
    lanes: Any,
    order: Any,
) -> Any:
    """`count` groups of 2 · lanes weights at `codes`, all of one scale.

    APART: evens to `out`, odds `odd_offset` bytes further, the next group `advance` bytes further. IN_ORDER: 2 · lanes
    fp32. PAIRS: lanes times 32 bits, of two neighbouring weights in bf16.
    """
    groups, width, kind = count.literal_value, lanes.literal_value, order.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, table_at, factor, target, apart, step = args[:6]
        table = vectors.scaled(vectors.table(table_at), factor)
        pair_table = vectors.pair_table(table, table) if kind == PAIRS else None
        for group in range(groups):
            raw = vectors.bytes_of(source, group * width)
            if kind == PAIRS:
                vectors.store(vectors.pair_levels(pair_table, vectors.neighbours(raw)), target)
                target = builder.add(target, step)
                continue
            even, odd = vectors.levels_of(table, raw)
            if kind == IN_ORDER:
                first, second = vectors.interleaved(even, odd)
                vectors.store(first, target)
                vectors.store(second, target, 4 * width)
            else:
                vectors.store(even, target)
                vectors.store(odd, target, apart)
            target = builder.add(target, step)
        return context.get_dummy_value()

    given = (levels, scale, out, odd_offset, advance, count, lanes, order)
    return signature(types.void, codes, *given), codegen


@intrinsic(prefer_literal=True)
def decode_row_pairs(
    typingctx: Any,
    codes: Any,
    scale: Any,
    other_codes: Any,
    other_scale: Any,
    levels: Any,
    out: Any,
    odd_offset: Any,
    advance: Any,
    count: Any,
    lanes: Any,
) -> Any:
    """As `decode_groups` with APART, but of two rows: 32 bits hold the same column of both in bf16."""
    groups, width = count.literal_value, lanes.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        first, factor, second, other_factor, table_at, target, apart, step = args[:8]
        table = vectors.table(table_at)
        pair_table = vectors.pair_table(vectors.scaled(table, factor), vectors.scaled(table, other_factor))
        for group in range(groups):
            codes_of = vectors.two_rows(*(vectors.bytes_of(row, group * width) for row in (first, second)))
            for place, codes_here in zip((target, builder.add(target, apart)), codes_of, strict=True):
                vectors.store(vectors.pair_levels(pair_table, codes_here), place)
            target = builder.add(target, step)
        return context.get_dummy_value()

    given = (scale, other_codes, other_scale, levels, out, odd_offset, advance, count, lanes)
    return signature(types.void, codes, *given), codegen
