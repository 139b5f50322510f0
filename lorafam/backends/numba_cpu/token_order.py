"""Tokens into the order in which kernels read them, and sums into that of the output, as Numba intrinsics: through
registers, since element by element it takes a fifth of a product.

Numba keeps an intrinsic's code by its signature, so the signature has the constants in it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compat.numba import signature
from .decoding import IN_ORDER, PAIRS
from .vectors import I64, Vectors, loop, times


@intrinsic(prefer_literal=True)
def pack_line(typingctx: Any, x: Any, out: Any, lanes: Any, narrow: Any, pairs: Any) -> Any:
    """8 · lanes columns of a token, fp32 or (narrow) bf16, in the order in which `dot_rows` reads a line."""
    width, halves, by_pairs = lanes.literal_value, bool(narrow.literal_value), bool(pairs.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, target = args[:2]
        values = [
            vectors.widened(source, 2 * width * i) if halves else vectors.load(source, 4 * width * i) for i in range(8)
        ]
        columns = vectors.by_eights(values)
        if by_pairs:
            columns = [vectors.pairs(columns[column], columns[column + 4]) for column in (1, 0, 3, 2)]
        for i, value in enumerate(columns):
            vectors.store(value, target, 4 * width * i)
        return context.get_dummy_value()

    return signature(types.void, x, out, lanes, narrow, pairs), codegen


@intrinsic(prefer_literal=True)
def write_rows(
    typingctx: Any, sums: Any, sum_bytes: Any, out: Any, out_bytes: Any, start: Any, lanes: Any, apart: Any, kind: Any
) -> Any:
    """`lanes` tokens of sums [weights][tokens] to out, a row a token: `lanes` weights, or with `apart` the even and the
    odd ones of twice as many, whose sums follow one another.

    The strides are bytes. kind 0 writes fp32, 1 bf16; `start`, unless 0, is fp32 with out's rows, and is added.
    """
    width, by_pairs, narrow = lanes.literal_value, bool(apart.literal_value), bool(kind.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, target, row_bytes, first = args[:5]
        columns = []
        for part in range(2 if by_pairs else 1):
            at = builder.add(source, times(builder, stride, part * width))
            rows = [vectors.load(at, times(builder, stride, i)) for i in range(width)]
            columns.append(vectors.transposed(rows))
        given = builder.icmp_signed("!=", first, ir.Constant(I64, 0))
        for token in range(width):
            values = [columns[0][token]]
            if by_pairs:
                values = list(vectors.interleaved(columns[0][token], columns[1][token]))
            to = builder.add(target, times(builder, row_bytes, token))
            with builder.if_else(given) as (then, otherwise):
                with then:
                    more = builder.add(first, times(builder, row_bytes, token * (2 if narrow else 1)))
                    added = [builder.fadd(value, vectors.load(more, 4 * width * i)) for i, value in enumerate(values)]
                    after_then = builder.block
                with otherwise:
                    after_otherwise = builder.block
            for i, value in enumerate(values):
                result = builder.phi(value.type)
                result.add_incoming(added[i], after_then)
                result.add_incoming(value, after_otherwise)
                values[i] = result
            for i, value in enumerate(values):
                if narrow:
                    halves = vectors.narrowed(value)
                    builder.store(halves, vectors.address(to, 2 * width * i, halves.type), align=2)
                else:
                    vectors.store(value, to, 4 * width * i)
        return context.get_dummy_value()

    given_types = (sum_bytes, out, out_bytes, start, lanes, apart, kind)
    return signature(types.void, sums, *given_types), codegen


@intrinsic(prefer_literal=True)
def write_scaled(
    typingctx: Any, source: Any, factor: Any, out: Any, more: Any, scale: Any, scale_step: Any, lanes: Any
) -> Any:
    """A register of fp32 times a factor to out, with `more` unless 0 added to what is there; then, unless `scale` is 0,
    times the fp32 there: one for all lanes with `scale_step` 0, else one a lane.
    """
    width = lanes.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, factor, target, add, scale_at, step = args[:6]
        zero = ir.Constant(I64, 0)

        def present(address: Any) -> Any:
            return builder.zext(builder.icmp_signed("!=", address, zero), I64)

        def added(values: list[Any], _: Any) -> list[Any]:
            return [builder.fadd(vectors.load(target), values[0])]

        def alike(values: list[Any], _: Any) -> list[Any]:
            return [builder.fmul(values[0], vectors.splat_load(scale_at))]

        def apart(values: list[Any], _: Any) -> list[Any]:
            return [builder.fmul(values[0], vectors.load(scale_at))]

        values = [builder.fmul(vectors.load(source), vectors.splat(factor))]
        values = loop(builder, present(add), values, added)
        scaled, by_lane = present(scale_at), present(step)
        values = loop(builder, builder.mul(scaled, builder.sub(ir.Constant(I64, 1), by_lane)), values, alike)
        values = loop(builder, builder.mul(scaled, by_lane), values, apart)
        vectors.store(values[0], target)
        return context.get_dummy_value()

    return signature(types.void, source, factor, out, more, scale, scale_step, lanes), codegen


@intrinsic(prefer_literal=True)
def copy_registers(typingctx: Any, source: Any, out: Any, out_bytes: Any, count: Any, lanes: Any, narrow: Any) -> Any:
    """`count` registers of fp32, or of bf16 where `narrow`, that lie one after the other, to out as fp32, `out_bytes`
    apart.
    """
    width, halves = lanes.literal_value, bool(narrow.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, target, step, number = args[:4]

        def body(_: list[Any], index: Any) -> list[Any]:
            at = builder.add(source, times(builder, index, (2 if halves else 4) * width))
            value = vectors.widened(at, 0) if halves else vectors.load(at)
            vectors.store(value, builder.add(target, builder.mul(index, step)))
            return []

        loop(builder, number, [], body)
        return context.get_dummy_value()

    return signature(types.void, source, out, out_bytes, count, lanes, narrow), codegen


@intrinsic(prefer_literal=True)
def pack_block(
    typingctx: Any, x: Any, row_bytes: Any, factors: Any, out: Any, out_bytes: Any, lanes: Any, order: Any, kind: Any
) -> Any:
    """`lanes` rows of 2 · lanes columns of x, transposed, to out, a row a column (or two columns in bf16, with PAIRS).

    kind 0 reads fp32, 1 bf16, 2 and 3 the same times fp32 `factors`, one a column.
    """
    width, arrangement = lanes.literal_value, order.literal_value
    narrow, scaled = bool(kind.literal_value & 1), bool(kind.literal_value & 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, factor, target, step = args[:5]
        rows: list[list[Any]] = [[], []]
        for token in range(width):
            at = builder.add(source, times(builder, stride, token))
            if arrangement == PAIRS and narrow and not scaled:
                rows[0].append(vectors.load(at))
                continue
            values = [
                vectors.widened(at, 2 * width * half) if narrow else vectors.load(at, 4 * width * half)
                for half in range(2)
            ]
            if scaled:
                values = [
                    builder.fmul(value, vectors.load(factor, 4 * width * half)) for half, value in enumerate(values)
                ]
            if arrangement != IN_ORDER:
                first, second = values
                values = [vectors.shuffle(first, second, range(parity, 2 * width, 2)) for parity in range(2)]
            if arrangement == PAIRS:
                rows[0].append(builder.bitcast(vectors.pairs(*values), vectors.floats))
                continue
            rows[0].append(values[0])
            rows[1].append(values[1])
        for half, part in enumerate(rows):
            for column, value in enumerate(vectors.transposed(part) if part else []):
                vectors.store(value, builder.add(target, times(builder, step, half * width + column)))
        return context.get_dummy_value()

    given = (row_bytes, factors, out, out_bytes, lanes, order, kind)
    return signature(types.void, x, *given), codegen
