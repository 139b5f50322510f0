"""Products of a tile in registers, as Numba intrinsics.

Numba keeps an intrinsic's code by its signature, so the signature has the constants in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ...compat.numba import signature
from .vectors import I64, Vectors, loop


def _add_tile(
    vectors: Vectors,
    total: Any,
    rows: list[Any],
    row_stride: int,
    step: int,
    tokens: Any,
    terms: Any,
    height: int,
    across: int,
    multiply: Callable[[Any, Any, Any], Any],
) -> None:
    """Emits total[row][token] += Σ over `terms` of weight[row] · tokens[token], the sum formed apart. `rows`: where
    each row begins, or the first, with `row_stride` bytes to the next; a term is `step` bytes on.
    """
    builder, width, places = vectors.builder, vectors.lanes, len(rows)

    def body(values: list[Any], index: Any) -> list[Any]:
        here, token, sums = values[:places], values[places], values[places + 1 :]
        columns = [vectors.load(token, 4 * width * column) for column in range(across)]
        found = []
        for row in range(height):
            term = vectors.splat_load(here[row % places], row * row_stride)
            found += [multiply(term, columns[i], sums[row * across + i]) for i in range(across)]
        following = [builder.add(place, ir.Constant(I64, step)) for place in here]
        return [*following, builder.add(token, ir.Constant(I64, 4 * width * across)), *found]

    last = loop(builder, terms, [*rows, tokens, *[vectors.zero] * (height * across)], body)
    for place, value in enumerate(last[places + 1 :]):
        before = vectors.load(total, 4 * width * place)
        vectors.store(builder.fadd(before, value), total, 4 * width * place)


@intrinsic(prefer_literal=True)
def add_tile(
    typingctx: Any,
    total: Any,
    weights: Any,
    row_stride: Any,
    term_stride: Any,
    tokens: Any,
    terms: Any,
    lanes: Any,
    rows: Any,
    registers: Any,
    pairs: Any,
) -> Any:
    """total[row][token] += Σ over `terms` of weight[row][term] · tokens[term][token], the sum formed apart.

    A term is an fp32, or with `pairs` two bf16 in as many bits. total is fp32 [rows, registers · lanes]; the strides of
    a weight are bytes; tokens [terms, registers · lanes] lie one after the other.
    """
    width, height, across = lanes.literal_value, rows.literal_value, registers.literal_value
    by_pairs, stride, step = bool(pairs.literal_value), row_stride.literal_value, term_stride.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        out, weight, x, count = args[0], args[1], args[4], args[5]
        multiply = vectors.pair_product if by_pairs else vectors.fma
        _add_tile(vectors, out, [weight], stride, step, x, count, height, across, multiply)
        return context.get_dummy_value()

    given = (weights, row_stride, term_stride, tokens, terms, lanes, rows, registers, pairs)
    return signature(types.void, total, *given), codegen


@intrinsic(prefer_literal=True)
def add_matrix_tile(
    typingctx: Any,
    total: Any,
    matrix: Any,
    row_bytes: Any,
    last: Any,
    tokens: Any,
    terms: Any,
    lanes: Any,
    rows: Any,
    registers: Any,
) -> Any:
    """`add_tile` for rows of an fp32 matrix where they lie: any stride, rows past `last` are that one again."""
    width, height, across = lanes.literal_value, rows.literal_value, registers.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Vectors(builder, width)
        out, source, stride, final, x, count = args[:6]
        indices = [ir.Constant(I64, row) for row in range(height)]
        indices = [builder.select(builder.icmp_signed("<", index, final), index, final) for index in indices]
        row_of = [builder.add(source, builder.mul(index, stride)) for index in indices]

        _add_tile(vectors, out, row_of, 0, 4, x, count, height, across, vectors.fma)
        return context.get_dummy_value()

    given = (matrix, row_bytes, last, tokens, terms, lanes, rows, registers)
    return signature(types.void, total, *given), codegen
