"""The vector code of the kernels, as Numba intrinsics over addresses: what Numba's own language can't say.

A register holds `lanes` fp32. 4-bit codes are decoded by groups of 2 · lanes weights, whose even ones (high nibbles)
and odd ones fill a register each; nothing is interleaved unless asked for. A block's scale goes into the sixteen levels
before the look-up, so a decoded weight is level · scale rounded once, as bitsandbytes has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing import signature
from numba.extending import intrinsic

from ...ops.by_storage import NESTED_BLOCK_SIZE

F32, I8, I16, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)


NESTED_BITS = NESTED_BLOCK_SIZE.bit_length() - 1


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite doesn't name."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


class Vectors:
    """Emits code on registers of `lanes` fp32."""

    def __init__(self, builder: Any, lanes: int) -> None:
        self.builder, self.lanes = builder, lanes
        self.floats, self.ints = ir.VectorType(F32, lanes), ir.VectorType(I32, lanes)
        self.zero = ir.Constant(self.floats, [0.0] * lanes)

    def address(self, base: Any, offset: Any, kind: Any) -> Any:
        if isinstance(offset, int):
            offset = ir.Constant(I64, offset)
        return self.builder.inttoptr(self.builder.add(base, offset), kind.as_pointer())

    def load(self, base: Any, offset: Any = 0) -> Any:
        return self.builder.load(self.address(base, offset, self.floats), align=4)

    def store(self, value: Any, base: Any, offset: Any = 0) -> None:
        self.builder.store(value, self.address(base, offset, value.type), align=4)

    def splat(self, scalar: Any) -> Any:
        single = self.builder.insert_element(ir.Constant(self.floats, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(
            single, ir.Constant(self.floats, ir.Undefined), ir.Constant(self.ints, [0] * self.lanes)
        )

    def splat_load(self, base: Any, offset: Any = 0) -> Any:
        return self.splat(self.builder.load(self.address(base, offset, F32), align=4))

    def call(self, name: str, result: Any, *arguments: Any) -> Any:
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, kind, name), arguments)

    def fma(self, a: Any, b: Any, c: Any) -> Any:
        """a b + c, in one rounding where the processor can."""
        return self.call(f"llvm.fmuladd.v{self.lanes}f32", self.floats, a, b, c)

    def pair_product(self, a: Any, b: Any, c: Any) -> Any:
        """c + a₀ b₀ + a₁ b₁ over pairs of bf16 in 32 bits (AVX512_BF16)."""
        pairs = ir.VectorType(_BFloat(), 2 * self.lanes)
        a, b = (self.builder.bitcast(value, pairs) for value in (a, b))
        return self.call("llvm.x86.avx512bf16.dpbf16ps.512", self.floats, c, a, b)

    def total(self, value: Any) -> Any:
        """The sum over the lanes, halves added first."""
        width = self.lanes
        while width > 1:
            width //= 2
            none = ir.Constant(value.type, ir.Undefined)
            kind = ir.VectorType(I32, width)
            low, high = (
                self.builder.shuffle_vector(value, none, ir.Constant(kind, list(range(start, start + width))))
                for start in (0, width)
            )
            value = self.builder.fadd(low, high)
        return self.builder.extract_element(value, ir.Constant(I32, 0))

    def shuffle(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), list(order)))

    def transposed(self, rows: Sequence[Any]) -> list[Any]:
        """Register i holds lane i of each: `lanes` registers, by exchanging halves, quarters, …"""
        found, lanes = list(rows), range(self.lanes)
        distance = self.lanes // 2
        while distance:
            for i in lanes:
                if i & distance:
                    continue
                a, b = found[i], found[i + distance]
                first = [lane if not lane & distance else self.lanes + lane - distance for lane in lanes]
                second = [lane + distance if not lane & distance else self.lanes + lane for lane in lanes]
                found[i], found[i + distance] = self.shuffle(a, b, first), self.shuffle(a, b, second)
            distance //= 2
        return found

    def by_eights(self, values: Sequence[Any]) -> list[Any]:
        """Element 8 · lane + i of a sequence in eight registers, as lane of register i: parted by the lowest bit of the
        place, then by the next.
        """
        if len(values) == 1:
            return list(values)
        pairs = list(zip(values[::2], values[1::2], strict=True))
        even, odd = (
            self.by_eights([self.shuffle(*pair, range(parity, 2 * self.lanes, 2)) for pair in pairs])
            for parity in range(2)
        )
        return [value for both in zip(even, odd, strict=True) for value in both]

    def widened(self, base: Any, offset: int) -> Any:
        """`lanes` bf16 as fp32."""
        halves = ir.VectorType(I16, self.lanes)
        words = self.builder.zext(self.builder.load(self.address(base, offset, halves), align=2), self.ints)
        return self.builder.bitcast(self.builder.shl(words, self.integer(16)), self.floats)

    def narrowed(self, value: Any) -> Any:
        """fp32 rounded to the nearest bf16, ties to even; NaN stays NaN."""
        build = self.builder
        word = build.bitcast(value, self.ints)
        tie = build.and_(build.lshr(word, self.integer(16)), self.integer(1))
        near = build.add(build.add(word, self.integer(0x7FFF)), tie)
        quiet = build.or_(word, self.integer(0x00400000))
        chosen = build.select(build.fcmp_unordered("uno", value, value), quiet, near)
        return build.trunc(build.lshr(chosen, self.integer(16)), ir.VectorType(I16, self.lanes))

    def integer(self, value: int) -> Any:
        return ir.Constant(self.ints, [value] * self.lanes)

    # the look-up

    def table(self, levels: Any) -> list[Any]:
        """The sixteen fp32 levels at an address, in as many registers as they fill."""
        return [self.load(levels, 4 * part) for part in range(0, 16, self.lanes)]

    def scaled(self, table: Sequence[Any], scale: Any) -> list[Any]:
        """The table times a scale, as `looked_up` takes it."""
        return self.held([self.builder.fmul(part, self.splat(scale)) for part in table])

    def held(self, parts: list[Any]) -> list[Any]:
        """A table where `looked_up` finds it: in registers, or in memory where no instruction permutes them."""
        if self.lanes >= 8:
            return parts
        memory = cgutils.alloca_once(self.builder, ir.ArrayType(F32, 16))
        for part, value in enumerate(parts):
            at = self.builder.gep(memory, [ir.Constant(I32, 0), ir.Constant(I32, part * self.lanes)])
            self.builder.store(value, self.builder.bitcast(at, self.floats.as_pointer()), align=4)
        return [memory]

    def bytes_of(self, codes: Any, offset: Any) -> Any:
        """`lanes` bytes as 32-bit integers."""
        packed = ir.VectorType(I8, self.lanes)
        return self.builder.zext(self.builder.load(self.address(codes, offset, packed), align=1), self.ints)

    def integers_at(self, base: Any, offset: int) -> Any:
        """`lanes` 32-bit integers from any byte on."""
        return self.builder.load(self.address(base, offset, self.ints), align=1)

    def levels_of(self, table: Sequence[Any], raw: Any) -> tuple[Any, Any]:
        """The levels of high and low nibbles of bytes."""
        return self.looked_up(table, self.builder.lshr(raw, self.integer(4))), self.looked_up(table, raw)

    def looked_up(self, table: Sequence[Any], codes: Any) -> Any:
        """The levels of the lowest four bits."""
        if self.lanes == 16:
            return self.call("llvm.x86.avx512.permvar.sf.512", self.floats, table[0], codes)
        if self.lanes == 8:
            # eight levels each from the two halves of the table, chosen by bit 3 of the code, as a sign
            low, high = (self.call("llvm.x86.avx2.permps", self.floats, half, codes) for half in table)
            sign = self.builder.bitcast(self.builder.shl(codes, self.integer(28)), self.floats)
            return self.call("llvm.x86.avx.blendv.ps.256", self.floats, low, high, sign)
        return self._one_by_one(table[0], self.builder.and_(codes, self.integer(15)))

    # AVX512_BF16: a register of 32 bf16 is a table for 16-bit look-ups, which heed the low five bits of an index

    def pair_table(self, low: Any, high: Any) -> Any:
        """32 levels in bf16: sixteen of a scaled table, then sixteen of another."""
        kind = ir.VectorType(_BFloat(), 16)
        words = ir.VectorType(I16, 16)
        both = [
            self.builder.bitcast(self.call("llvm.x86.avx512bf16.cvtneps2bf16.512", kind, table[0]), words)
            for table in (low, high)
        ]
        return self.builder.shuffle_vector(*both, ir.Constant(ir.VectorType(I32, 32), list(range(32))))

    def pair_levels(self, table: Any, codes: Any) -> Any:
        """A pair of bf16 in each 32 bits, by the codes in its halves."""
        words = ir.VectorType(I16, 32)
        found = self.call("llvm.x86.avx512.permvar.hi.512", words, table, self.builder.bitcast(codes, words))
        return self.builder.bitcast(found, self.ints)

    def neighbours(self, raw: Any) -> Any:
        """Codes of high and low nibble in the halves of 32 bits; bit 4 of the second is anything."""
        return self.builder.or_(self.builder.lshr(raw, self.integer(4)), self.builder.shl(raw, self.integer(16)))

    def two_rows(self, raw: Any, other: Any) -> tuple[Any, Any]:
        """Codes of the high nibbles of two rows in the halves of 32 bits, and of the low ones; the second row's look up
        the table's second half.
        """
        both = self.builder.or_(raw, self.builder.shl(other, self.integer(16)))
        second = self.integer(0x00100000)
        high = self.builder.or_(self.builder.lshr(both, self.integer(4)), second)
        low = self.builder.or_(self.builder.and_(both, self.integer(0x000F000F)), second)
        return high, low

    def _one_by_one(self, memory: Any, codes: Any) -> Any:
        result = ir.Constant(self.floats, ir.Undefined)
        for lane in range(self.lanes):
            index = self.builder.extract_element(codes, ir.Constant(I32, lane))
            level = self.builder.load(self.builder.gep(memory, [ir.Constant(I32, 0), index]))
            result = self.builder.insert_element(result, level, ir.Constant(I32, lane))
        return result

    def interleaved(self, even: Any, odd: Any) -> tuple[Any, Any]:
        """Two registers in the order even₀ odd₀ even₁ odd₁ …"""
        order = [index for pair in range(self.lanes) for index in (pair, self.lanes + pair)]
        return self.shuffle(even, odd, order[: self.lanes]), self.shuffle(even, odd, order[self.lanes :])


def fetch_ahead(builder: Any, address: Any) -> None:
    """Asks for the cache line at an address, which need not be ours."""
    pointer = builder.inttoptr(address, I8.as_pointer())
    # for reading, to be kept close, as data
    flags = [ir.Constant(I32, value) for value in (0, 3, 1)]
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, I32, I32, I32])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0"), [pointer, *flags])


def loop(builder: Any, count: Any, carried: Sequence[Any], body: Callable[[list[Any], Any], list[Any]]) -> list[Any]:
    """`body(values, index)` gives the next values, `count` times; the values stay in registers."""
    before = builder.block
    head, inside, after = (builder.append_basic_block(name) for name in ("head", "inside", "after"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(I64)
    index.add_incoming(ir.Constant(I64, 0), before)
    values = []
    for start in carried:
        value = builder.phi(start.type)
        value.add_incoming(start, before)
        values.append(value)
    builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
    builder.position_at_end(inside)
    for value, following in zip(values, body(values, index), strict=True):
        value.add_incoming(following, builder.block)
    index.add_incoming(builder.add(index, ir.Constant(I64, 1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def times(builder: Any, value: Any, factor: int) -> Any:
    return builder.mul(value, ir.Constant(I64, factor))


# values in memory


def _value(kind: Any, numba_type: Any) -> Any:
    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.load(builder.inttoptr(args[0], kind.as_pointer()), align=1)

        return numba_type(types.int64), codegen

    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            builder.store(args[1], builder.inttoptr(args[0], kind.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, numba_type), codegen

    return load, store


load_float, store_float = _value(F32, types.float32)
load_integer, store_integer = _value(I64, types.int64)
load_word, store_word = _value(I32, types.uint32)
load_half, store_half = _value(I16, types.uint16)
load_byte, store_byte = _value(I8, types.uint8)


@intrinsic
def word_of(typingctx: Any, value: Any) -> Any:
    """The bits of an fp32 as uint32."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], I32)

    return types.uint32(types.float32), codegen


@intrinsic
def float_of(typingctx: Any, bits: Any) -> Any:
    """The fp32 of 32 bits."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], F32)

    return types.float32(types.uint32), codegen


@intrinsic
def fetch_add(typingctx: Any, address: Any) -> Any:
    """The int64 at an address, which is one more afterwards; whole among threads."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(I64, 1), "seq_cst")

    return types.int64(types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Asks for the cache line at an address, which need not be ours."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fetch_ahead(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# decoding and products. Numba keeps an intrinsic's code by its signature, so the signature has the constants in it

# how decoded weights are stored: evens and odds apart, in their own order, or as pairs of bf16
APART, IN_ORDER, PAIRS = 0, 1, 2


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

        def body(values: list[Any], index: Any) -> list[Any]:
            here, token, *sums = values
            columns = [vectors.load(token, 4 * width * column) for column in range(across)]
            found = []
            for row in range(height):
                term = vectors.splat_load(here, row * stride)
                found += [multiply(term, columns[i], sums[row * across + i]) for i in range(across)]
            following = [
                builder.add(here, ir.Constant(I64, step)),
                builder.add(token, ir.Constant(I64, 4 * width * across)),
            ]
            return following + found

        _, _, *sums = loop(builder, count, [weight, x, *[vectors.zero] * (height * across)], body)
        for place, value in enumerate(sums):
            before = vectors.load(out, 4 * width * place)
            vectors.store(builder.fadd(before, value), out, 4 * width * place)
        return context.get_dummy_value()

    given = (weights, row_stride, term_stride, tokens, terms, lanes, rows, registers, pairs)
    return signature(types.void, total, *given), codegen


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
            low_high = [(columns[column], columns[column + 4]) for column in (1, 0, 3, 2)]
            columns = []
            for low, high in low_high:
                first, second = (builder.zext(vectors.narrowed(value), vectors.ints) for value in (low, high))
                columns.append(builder.or_(first, builder.shl(second, vectors.integer(16))))
        for i, value in enumerate(columns):
            vectors.store(value, target, 4 * width * i)
        return context.get_dummy_value()

    return signature(types.void, x, out, lanes, narrow, pairs), codegen


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
    4, lanes, 2], columns 1 and 5, 0 and 4, 3 and 7, 2 and 6 of a lane's eight; B̂ [rows, rank], P [tokens, rank] fp32.
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
        whole = builder.sdiv(terms, ir.Constant(I64, width))

        def low_rank(sums: list[Any], index: Any) -> list[Any]:
            at = times(builder, index, 4 * width)
            found = list(sums)
            for row in range(height):
                left = vectors.load(builder.add(factor, times(builder, terms, 4 * row)), at)
                for one in range(across):
                    right = vectors.load(builder.add(projected, times(builder, terms, 4 * one)), at)
                    found[row * across + one] = vectors.fma(left, right, found[row * across + one])
            return found

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
                low, high = (builder.zext(vectors.narrowed(value), vectors.ints) for value in values)
                both = builder.or_(low, builder.shl(high, vectors.integer(16)))
                rows[0].append(builder.bitcast(both, vectors.floats))
                continue
            rows[0].append(values[0])
            rows[1].append(values[1])
        for half, part in enumerate(rows):
            for column, value in enumerate(vectors.transposed(part) if part else []):
                vectors.store(value, builder.add(target, times(builder, step, half * width + column)))
        return context.get_dummy_value()

    given = (row_bytes, factors, out, out_bytes, lanes, order, kind)
    return signature(types.void, x, *given), codegen
