"""Codes that are looked up and multiplied at once, in registers: Numba intrinsics, as in `multiply.py`."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compat.numba import signature
from ...ops.by_storage import NESTED_BLOCK_SIZE
from .vectors import F32, I8, I32, I64, Vectors, fetch_ahead, loop, times

NESTED_BITS = NESTED_BLOCK_SIZE.bit_length() - 1


@intrinsic(prefer_literal=True)
def dot_rows(
    typingctx: Any,
    codes: Any,
    row_bytes: Any,
    levels: Any,
    absmax: Any,
    absmax_codes: Any,
    nested_absmax: Any,
    nested_levels: Any,
    block: Any,
    blocks: Any,
    shift: Any,
    lines: Any,
    x: Any,
    b_hat: Any,
    p: Any,
    rank: Any,
    out: Any,
    lanes: Any,
    rows: Any,
    tokens: Any,
    runs: Any,
    pairs: Any,
    nested: Any,
) -> Any:
    """out[row][token] = Σ over a whole row of weight · x + Σ over the first whole registers of the rank of B̂ · P.

    A line is 8 · lanes weights: a lane looks up the eight codes of 32 bits one after the other, and their sum is
    multiplied by the lane's scale. A line has `runs` of them: that of block (line · runs + run) >> shift after `block`,
    the first row's first; a row has `blocks`. x is fp32 [lines, tokens, 8, lanes], or with `pairs` bf16 [lines, tokens,
    4, lanes, 2], columns 1 and 5, 0 and 4, 3 and 7, 2 and 6 of a lane's eight, and the levels are those of
    `four_bit.gained`, rounded to bf16; B̂ [rows, rank], P [tokens, rank] fp32.
    """
    width, height, across, several = (value.literal_value for value in (lanes, rows, tokens, runs))
    doubly = bool(nested.literal_value)
    by_pairs = bool(pairs.literal_value)
    of_lane = [lane * several // width for lane in range(width)]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        few = ir.VectorType(F32, several)
        source, stride, table_at, plain, codes_of, outer, outer_levels, first_block, per_row, coarse = args[:10]
        count, token, factor, projected, terms, target = args[10:16]
        offset = builder.load(vectors.address(plain, 0, F32)) if doubly else None
        levels_here = vectors.table(table_at)
        table = vectors.held(levels_here)
        pair_table = vectors.pair_table(levels_here, levels_here) if by_pairs else None
        ahead = times(builder, stride, height)
        row_of = [builder.add(source, times(builder, stride, row)) for row in range(height)]
        block_of = [builder.add(first_block, times(builder, per_row, row)) for row in range(height)]

        def scale_at(block_here: Any) -> Any:
            if not doubly:
                return builder.load(vectors.address(plain, times(builder, block_here, 4), F32))
            code = builder.zext(builder.load(vectors.address(codes_of, block_here, I8)), I64)
            level = builder.load(vectors.address(outer_levels, times(builder, code, 4), F32))
            nested_block = builder.lshr(block_here, ir.Constant(I64, NESTED_BITS))
            scaled = builder.fmul(level, builder.load(vectors.address(outer, times(builder, nested_block, 4), F32)))
            return builder.fadd(scaled, offset)

        def body(values: list[Any], index: Any) -> list[Any]:
            x_at, at, *sums = values
            parts: list[Any] = [None] * len(sums)
            for row in range(height):
                # the same place in the rows after these
                fetch_ahead(builder, builder.add(builder.add(row_of[row], at), ahead))
            raws = [vectors.integers_at(builder.add(row_of[row], at), 0) for row in range(height)]
            # of 32 bits the code looked up: high and low of each byte; as pairs codes j and j + 4
            shifts = (0, 4, 8, 12) if by_pairs else (4, 0, 12, 8, 20, 16, 28, 24)
            for step, shift in enumerate(shifts):
                for row in range(height):
                    codes_here = builder.lshr(raws[row], vectors.integer(shift))
                    if by_pairs:
                        weights = vectors.pair_levels(pair_table, codes_here)
                    else:
                        weights = vectors.looked_up(table, codes_here)
                    for one in range(across):
                        column = vectors.load(x_at, (one * len(shifts) + step) * 4 * width)
                        place = row * across + one
                        if by_pairs:
                            parts[place] = vectors.pair_product(weights, column, parts[place] or vectors.zero)
                        elif step == 0:
                            parts[place] = builder.fmul(weights, column)
                        else:
                            parts[place] = vectors.fma(weights, column, parts[place])
            for row in range(height):
                scales = ir.Constant(few, ir.Undefined)
                for run in range(several):
                    after = builder.lshr(builder.add(times(builder, index, several), ir.Constant(I64, run)), coarse)
                    scale = scale_at(builder.add(block_of[row], after))
                    scales = builder.insert_element(scales, scale, ir.Constant(I32, run))
                scale_here = vectors.shuffle(scales, ir.Constant(few, ir.Undefined), of_lane)
                for one in range(across):
                    place = row * across + one
                    sums[place] = vectors.fma(parts[place], scale_here, sums[place])
            following = [
                builder.add(x_at, ir.Constant(I64, across * (16 if by_pairs else 32) * width)),
                builder.add(at, ir.Constant(I64, 4 * width)),
            ]
            return following + sums

        start = [token, ir.Constant(I64, 0), *[vectors.zero] * (height * across)]
        _, _, *sums = loop(builder, count, start, body)
        if by_pairs:
            without_gain = vectors.splat_load(table_at, 4 * 16)
            sums = [builder.fmul(value, without_gain) for value in sums]
        whole = builder.sdiv(terms, ir.Constant(I64, width))

        def low_rank(sums: list[Any], index: Any) -> list[Any]:
            at = times(builder, index, 4 * width)
            results = list(sums)
            for row in range(height):
                left = vectors.load(builder.add(factor, times(builder, terms, 4 * row)), at)
                for one in range(across):
                    right = vectors.load(builder.add(projected, times(builder, terms, 4 * one)), at)
                    results[row * across + one] = vectors.fma(left, right, results[row * across + one])
            return results

        for place, value in enumerate(loop(builder, whole, sums, low_rank)):
            builder.store(vectors.total(value), vectors.address(target, 4 * place, F32), align=4)
        return context.get_dummy_value()

    where = (absmax, absmax_codes, nested_absmax, nested_levels, block, blocks, shift)
    given = (row_bytes, levels, *where, lines, x, b_hat, p, rank, out, lanes, rows, tokens, runs, pairs, nested)
    return signature(types.void, codes, *given), codegen


@intrinsic(prefer_literal=True)
def add_rows(
    typingctx: Any,
    codes: Any,
    row_bytes: Any,
    levels: Any,
    scales: Any,
    count: Any,
    factors: Any,
    total: Any,
    lanes: Any,
    steps: Any,
    groups: Any,
    tokens: Any,
) -> Any:
    """total[token][columns] += Σ over `count` rows of factor[row][token] · weight[row][columns], the sum formed apart.

    The columns are `steps` steps of `groups` groups, a scale a step: scales fp32 [count, steps]; factors fp32 [count,
    tokens]; total fp32 [tokens, groups of all steps, evens then odds].
    """
    width, parts, per_step, across = (value.literal_value for value in (lanes, steps, groups, tokens))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, table_at, scale, rows, factor, target = args[:7]
        table = vectors.table(table_at)
        registers = parts * per_step * 2
        ahead = times(builder, stride, 12)

        def body(values: list[Any], index: Any) -> list[Any]:
            here, scale_at, factor_at, *sums = values
            fetch_ahead(builder, builder.add(here, ahead))
            given = [vectors.splat_load(factor_at, 4 * one) for one in range(across)]
            for step in range(parts):
                scaled = vectors.scaled(table, builder.load(vectors.address(scale_at, 4 * step, F32)))
                for group in range(step * per_step, (step + 1) * per_step):
                    both = vectors.levels_of(scaled, vectors.bytes_of(here, group * width))
                    for one in range(across):
                        for parity, weight in enumerate(both):
                            place = one * registers + 2 * group + parity
                            sums[place] = vectors.fma(weight, given[one], sums[place])
            following = [
                builder.add(here, stride),
                builder.add(scale_at, ir.Constant(I64, 4 * parts)),
                builder.add(factor_at, ir.Constant(I64, 4 * across)),
            ]
            return following + sums

        start = [source, scale, factor, *[vectors.zero] * (registers * across)]
        _, _, _, *sums = loop(builder, rows, start, body)
        for place, value in enumerate(sums):
            before = vectors.load(target, 4 * width * place)
            vectors.store(builder.fadd(before, value), target, 4 * width * place)
        return context.get_dummy_value()

    given = (row_bytes, levels, scales, count, factors, total, lanes, steps, groups, tokens)
    return signature(types.void, codes, *given), codegen
