"""Products of rows of a dense weight with few tokens, in registers, as Numba intrinsics.

    kind    WIDE: W and x in fp32    WIDENED: W in bf16, x in fp32    PAIRED: both bf16, multiplied as pairs

Numba keeps an intrinsic's code by its signature, so the signature has the constants in it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compat.numba import signature
from .vectors import F32, I64, Vectors, fetch_ahead, loop, times

WIDE, WIDENED, PAIRED = 0, 1, 2
# bytes of a row that are asked for ahead of their use
_AHEAD = 1024
# factors that fit the registers beside weights and sums
_KEPT = 8
# of an update that are added up apart
_RANKS = 64


@intrinsic(prefer_literal=True)
def dot_dense_rows(
    typingctx: Any,
    weight: Any,
    row_bytes: Any,
    steps: Any,
    x: Any,
    x_bytes: Any,
    last: Any,
    b_hat: Any,
    p: Any,
    rank: Any,
    ranks: Any,
    total: Any,
    lanes: Any,
    rows: Any,
    tokens: Any,
    kind: Any,
) -> Any:
    """total[row][token] += Σ over `steps` registers of a row of weight · x + Σ over `ranks` registers of B̂ · P.

    Tokens past `last` are that one again. B̂ [rows, rank], P [tokens, rank] and total are fp32.
    """
    width, height, across, way = (value.literal_value for value in (lanes, rows, tokens, kind))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, count, token, token_stride, final, factor, projected, rank_of, groups, target = args[:11]
        row_of = [builder.add(source, times(builder, stride, row)) for row in range(height)]
        weight_step, x_step = (2 if way == WIDENED else 4) * width, 4 * width

        indices = [ir.Constant(I64, one) for one in range(across)]
        indices = [builder.select(builder.icmp_signed("<", index, final), index, final) for index in indices]
        x_of = [builder.add(token, builder.mul(index, token_stride)) for index in indices]
        p_of = [builder.add(projected, times(builder, builder.mul(index, rank_of), 4)) for index in indices]
        multiply = vectors.pair_product if way == PAIRED else vectors.fma

        def loaded(at: Any, wide: bool) -> Any:
            if way == PAIRED:
                return vectors.integers_at(at, 0)
            return vectors.load(at) if wide else vectors.widened(at, 0)

        def body(sums: list[Any], index: Any) -> list[Any]:
            at = times(builder, index, weight_step)
            columns = [loaded(builder.add(place, times(builder, index, x_step)), True) for place in x_of]
            results = []
            for row in range(height):
                here = builder.add(row_of[row], at)
                fetch_ahead(builder, builder.add(here, ir.Constant(I64, _AHEAD)))
                weights = loaded(here, way == WIDE)
                results += [multiply(weights, columns[one], sums[row * across + one]) for one in range(across)]
            return results

        def low_rank(sums: list[Any], index: Any) -> list[Any]:
            at = times(builder, index, 4 * width)
            rights = [vectors.load(place, at) for place in p_of]
            results = []
            for row in range(height):
                left = vectors.load(builder.add(factor, times(builder, rank_of, 4 * row)), at)
                results += [vectors.fma(left, rights[one], sums[row * across + one]) for one in range(across)]
            return results

        sums = loop(builder, count, [vectors.zero] * (height * across), body)
        for place, value in enumerate(loop(builder, groups, sums, low_rank)):
            at = vectors.address(target, 4 * place, F32)
            builder.store(builder.fadd(builder.load(at, align=4), vectors.total(value)), at, align=4)
        return context.get_dummy_value()

    given = (row_bytes, steps, x, x_bytes, last, b_hat, p, rank, ranks, total, lanes, rows, tokens, kind)
    return signature(types.void, weight, *given), codegen


@intrinsic(prefer_literal=True)
def add_dense_rows(
    typingctx: Any,
    weight: Any,
    row_bytes: Any,
    steps: Any,
    factors: Any,
    factor_bytes: Any,
    last: Any,
    total: Any,
    total_bytes: Any,
    lanes: Any,
    rows: Any,
    tokens: Any,
    kind: Any,
) -> Any:
    """total[token][column] += Σ over the rows of factor[row][token] · weight[row][column], for `steps` registers of
    columns, of bf16 in pairs two registers at a time.

    factors [tokens, rows] are fp32, or with PAIRED bf16, a token's `factor_bytes` apart; tokens past `last` are that
    one again. A row of total has `total_bytes`.
    """
    width, height, across, way = (value.literal_value for value in (lanes, rows, tokens, kind))
    paired = way == PAIRED

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, count, factor, factor_stride, final, target, target_bytes = args[:8]
        row_of = [builder.add(source, times(builder, stride, row)) for row in range(height)]
        total_of = [builder.add(target, times(builder, target_bytes, one)) for one in range(across)]
        terms, registers = (height // 2, 2) if paired else (height, 1)
        places = [(term, one) for term in range(terms) for one in range(across)]

        indices = [ir.Constant(I64, one) for one in range(across)]
        indices = [builder.select(builder.icmp_signed("<", index, final), index, final) for index in indices]
        factor_of = [builder.add(factor, builder.mul(index, factor_stride)) for index in indices]

        def factor_at(term: int, one: int) -> Any:
            # two bf16 may start in the middle of 32 bits
            return vectors.splat(builder.load(vectors.address(factor_of[one], 4 * term, F32), align=2))

        # more of them stay in memory, where a product takes them from
        kept = {place: factor_at(*place) for place in places} if len(places) <= _KEPT else {}

        def weights_at(at: Any) -> list[list[Any]]:
            if not paired:
                step = 2 if way == WIDENED else 4
                places = [builder.add(row, times(builder, at, step * width)) for row in row_of]
                return [[vectors.widened(place, 0) if way == WIDENED else vectors.load(place)] for place in places]
            offset = times(builder, at, 4 * width)
            halves = [vectors.halves_at(builder.add(row, offset)) for row in row_of]
            return [list(vectors.neighbouring_rows(*halves[term : term + 2])) for term in range(0, height, 2)]

        def body(_: list[Any], index: Any) -> list[Any]:
            for row in row_of:
                at = builder.add(row, times(builder, index, 2 * width if way == WIDENED else 4 * width))
                fetch_ahead(builder, builder.add(at, ir.Constant(I64, _AHEAD)))
            weights = weights_at(index)
            offset = times(builder, index, 4 * width * registers)
            for one in range(across):
                here = builder.add(total_of[one], offset)
                for register in range(registers):
                    value = vectors.load(here, 4 * width * register)
                    for term in range(terms):
                        given = kept.get((term, one)) or factor_at(term, one)
                        multiply = vectors.pair_product if paired else vectors.fma
                        value = multiply(weights[term][register], given, value)
                    vectors.store(value, here, 4 * width * register)
            return []

        loop(builder, count, [], body)
        return context.get_dummy_value()

    given = (row_bytes, steps, factors, factor_bytes, last, total, total_bytes, lanes, rows, tokens, kind)
    return signature(types.void, weight, *given), codegen


@intrinsic(prefer_literal=True)
def add_shares(
    typingctx: Any,
    shares: Any,
    share_bytes: Any,
    count: Any,
    q: Any,
    a: Any,
    row_bytes: Any,
    rank: Any,
    start: Any,
    out: Any,
    lanes: Any,
    registers: Any,
    narrow: Any,
) -> Any:
    """out = Σ of `count` shares + q A + start, for some registers of columns: q [rank], rows of A `row_bytes` apart; in
    fp32, or rounded to bf16; start may be 0.
    """
    width, across, halves = lanes.literal_value, registers.literal_value, bool(narrow.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, number, left, right, right_bytes, terms, first, target = args[:9]

        def share(sums: list[Any], index: Any) -> list[Any]:
            at = builder.add(source, builder.mul(stride, index))
            return [builder.fadd(value, vectors.load(at, 4 * width * i)) for i, value in enumerate(sums)]

        def piece(sums: list[Any], index: Any) -> list[Any]:
            start, most = times(builder, index, _RANKS), ir.Constant(I64, _RANKS)
            left_over = builder.sub(terms, start)
            count = builder.select(builder.icmp_signed("<", left_over, most), left_over, most)

            def low_rank(sums: list[Any], index: Any) -> list[Any]:
                rank = builder.add(start, index)
                factor = vectors.splat_load(left, times(builder, rank, 4))
                at = builder.add(right, builder.mul(right_bytes, rank))
                return [vectors.fma(factor, vectors.load(at, 4 * width * i), value) for i, value in enumerate(sums)]

            found = loop(builder, count, [vectors.zero] * across, low_rank)
            return [builder.fadd(value, more) for value, more in zip(sums, found, strict=True)]

        def begun(sums: list[Any], _: Any) -> list[Any]:
            return [builder.fadd(value, vectors.load(first, 4 * width * i)) for i, value in enumerate(sums)]

        sums = loop(builder, number, [vectors.zero] * across, share)
        # formed apart: added to the shares one by one it would lose digits to them
        pieces = builder.sdiv(builder.add(terms, ir.Constant(I64, _RANKS - 1)), ir.Constant(I64, _RANKS))
        updates = loop(builder, pieces, [vectors.zero] * across, piece)
        sums = [builder.fadd(value, update) for value, update in zip(sums, updates, strict=True)]
        given = builder.zext(builder.icmp_signed("!=", first, ir.Constant(I64, 0)), I64)
        for i, value in enumerate(loop(builder, given, sums, begun)):
            if halves:
                rounded = vectors.narrowed(value)
                builder.store(rounded, vectors.address(target, 2 * width * i, rounded.type), align=2)
            else:
                vectors.store(value, target, 4 * width * i)
        return context.get_dummy_value()

    given = (share_bytes, count, q, a, row_bytes, rank, start, out, lanes, registers, narrow)
    return signature(types.void, shares, *given), codegen
