"""A softmax whose terms come block after block (arXiv 1805.02867), as Numba intrinsics.

Numba keeps an intrinsic's code by its signature, so the signature has the constants in it.
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compat.numba import signature
from .vectors import I64, Vectors, loop, times

# eˣ = 2ⁿ eʳ, |r| ≤ ln 2 / 2: ln 2 in two parts, of which the first has so few bits that n times it is exact
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# eʳ's Taylor series, whose next term is under 2⁻²⁶ there
_TERMS = [1 / math.factorial(power) for power in range(8)]
# below, eˣ is no normal fp32; it is taken for 0
_LEAST = -87.0


def _exponential(vectors: Vectors, value: Any) -> Any:
    """eˣ of x ≤ 0, to 1.5 units in the last place; 0 below `_LEAST`, NaN of NaN."""
    builder = vectors.builder

    def constant(number: float) -> Any:
        return ir.Constant(vectors.floats, [number] * vectors.lanes)

    enough = builder.fcmp_ordered(">=", value, constant(_LEAST))
    # what isn't is computed too, of a value that makes no integer overflow
    bounded = builder.select(enough, value, constant(_LEAST))
    name = f"llvm.rint.v{vectors.lanes}f32"
    count = vectors.call(name, vectors.floats, builder.fmul(bounded, constant(1 / math.log(2))))
    rest = vectors.fma(count, constant(-_LN2_HIGH), bounded)
    rest = vectors.fma(count, constant(-_LN2_LOW), rest)
    power = constant(_TERMS[-1])
    for term in reversed(_TERMS[:-1]):
        power = vectors.fma(power, rest, constant(term))
    exponent = builder.shl(builder.add(builder.fptosi(count, vectors.ints), vectors.integer(127)), vectors.integer(23))
    power = builder.fmul(power, builder.bitcast(exponent, vectors.floats))
    power = builder.select(enough, power, vectors.zero)
    return builder.select(builder.fcmp_unordered("uno", value, value), value, power)


@intrinsic(prefer_literal=True)
def add_block(
    typingctx: Any, block: Any, row_bytes: Any, rows: Any, most: Any, total: Any, factor: Any, lanes: Any
) -> Any:
    """Takes `rows` more logits of each of `lanes` tokens into m = max l (at `most`) and Σ e^(l − m) (at `total`): the
    block becomes e^(l − m) of the new m, and e^(m before − m) goes to `factor`.
    """
    width = lanes.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, count, most_at, total_at, factor_at = args[:6]

        def row(index: Any) -> Any:
            return builder.add(source, builder.mul(stride, index))

        def larger(values: list[Any], index: Any) -> list[Any]:
            value = vectors.load(row(index))
            return [builder.select(builder.fcmp_ordered(">", value, values[0]), value, values[0])]

        def raised(values: list[Any], index: Any) -> list[Any]:
            value = _exponential(vectors, builder.fsub(vectors.load(row(index)), most))
            vectors.store(value, row(index))
            return [builder.fadd(values[0], value)]

        before = vectors.load(most_at)
        most = loop(builder, count, [before], larger)[0]
        factor = _exponential(vectors, builder.fsub(before, most))
        added = loop(builder, count, [vectors.zero], raised)[0]
        vectors.store(vectors.fma(vectors.load(total_at), factor, added), total_at)
        vectors.store(most, most_at)
        vectors.store(factor, factor_at)
        return context.get_dummy_value()

    given = (row_bytes, rows, most, total, factor, lanes)
    return signature(types.void, block, *given), codegen


@intrinsic(prefer_literal=True)
def scale_rows(typingctx: Any, sums: Any, rows: Any, factors: Any, lanes: Any, registers: Any) -> Any:
    """Each of `rows` rows of `registers` · lanes sums, one after the other, times the factors of one row."""
    width, across = lanes.literal_value, registers.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, count, factors_at = args[:3]
        factors = [vectors.load(factors_at, 4 * width * i) for i in range(across)]

        def body(_: list[Any], index: Any) -> list[Any]:
            at = builder.add(source, times(builder, index, 4 * width * across))
            for i, factor in enumerate(factors):
                vectors.store(builder.fmul(vectors.load(at, 4 * width * i), factor), at, 4 * width * i)
            return []

        loop(builder, count, [], body)
        return context.get_dummy_value()

    return signature(types.void, sums, rows, factors, lanes, registers), codegen


@intrinsic(prefer_literal=True)
def weighted_rows(
    typingctx: Any,
    sums: Any,
    share_bytes: Any,
    factors: Any,
    factor_bytes: Any,
    shares: Any,
    rows: Any,
    out: Any,
    lanes: Any,
    registers: Any,
) -> Any:
    """Σ over shares of `rows` rows of `registers` · lanes sums times the share's factors of one row, to out."""
    width, across = lanes.literal_value, registers.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        source, stride, factors_at, factor_stride, number, count, target = args[:7]

        def row(_: list[Any], index: Any) -> list[Any]:
            offset = times(builder, index, 4 * width * across)

            def share(values: list[Any], which: Any) -> list[Any]:
                at = builder.add(builder.add(source, offset), builder.mul(stride, which))
                by = builder.add(factors_at, builder.mul(factor_stride, which))
                return [
                    vectors.fma(vectors.load(at, 4 * width * i), vectors.load(by, 4 * width * i), value)
                    for i, value in enumerate(values)
                ]

            for i, value in enumerate(loop(builder, number, [vectors.zero] * across, share)):
                vectors.store(value, builder.add(target, offset), 4 * width * i)
            return []

        loop(builder, count, [], row)
        return context.get_dummy_value()

    given = (share_bytes, factors, factor_bytes, shares, rows, out, lanes, registers)
    return signature(types.void, sums, *given), codegen


@intrinsic(prefer_literal=True)
def fill_rows(typingctx: Any, out: Any, rows: Any, values: Any, lanes: Any, registers: Any) -> Any:
    """Row i of `registers` · lanes fp32, one row after the other, filled with value i; with 0 where `values` is 0."""
    width, across = lanes.literal_value, registers.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        target, count, source = args[:3]
        given = builder.zext(builder.icmp_signed("!=", source, ir.Constant(I64, 0)), I64)

        def body(_: list[Any], index: Any) -> list[Any]:
            def value(_: list[Any], __: Any) -> list[Any]:
                return [vectors.splat_load(source, times(builder, index, 4))]

            row = loop(builder, given, [vectors.zero], value)[0]
            at = builder.add(target, times(builder, index, 4 * width * across))
            for i in range(across):
                vectors.store(row, at, 4 * width * i)
            return []

        loop(builder, count, [], body)
        return context.get_dummy_value()

    return signature(types.void, out, rows, values, lanes, registers), codegen
