"""Emits LLVM code on vectors, which Numba's own language doesn't have: registers of `lanes` fp32, and loops over them.

The look-up of 4-bit codes: sixteen levels in one register (AVX-512) or two (AVX2), permuted by the codes; elsewhere one
after the other from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from ...compat.numba import LLVM_VERSION, cgutils

F32, I8, I16, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
# before LLVM 16 (Numba 0.61 has 15) the instructions on bf16 take and give integers of as many bits
_NAMES_BFLOAT = LLVM_VERSION >= (16,)


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
        none = ir.Constant(self.floats, ir.Undefined)
        single = self.builder.insert_element(none, scalar, ir.Constant(I32, 0))
        return self.shuffle(single, none, [0] * self.lanes)

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
        pairs = ir.VectorType(_BFloat(), 2 * self.lanes) if _NAMES_BFLOAT else self.ints
        a, b = (self.builder.bitcast(value, pairs) for value in (a, b))
        return self.call("llvm.x86.avx512bf16.dpbf16ps.512", self.floats, c, a, b)

    def total(self, value: Any) -> Any:
        """The sum over the lanes, halves added first."""
        width = self.lanes
        while width > 1:
            width //= 2
            none = ir.Constant(value.type, ir.Undefined)
            low, high = (self.shuffle(value, none, range(start, start + width)) for start in (0, width))
            value = self.builder.fadd(low, high)
        return self.builder.extract_element(value, ir.Constant(I32, 0))

    def shuffle(self, a: Any, b: Any, order: Sequence[int]) -> Any:
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), list(order)))

    def transposed(self, rows: Sequence[Any]) -> list[Any]:
        """Register i holds lane i of each: `lanes` registers, by exchanging halves, quarters, …"""
        registers, lanes = list(rows), range(self.lanes)
        distance = self.lanes // 2
        while distance:
            for i in lanes:
                if i & distance:
                    continue
                a, b = registers[i], registers[i + distance]
                first = [lane if not lane & distance else self.lanes + lane - distance for lane in lanes]
                second = [lane + distance if not lane & distance else self.lanes + lane for lane in lanes]
                registers[i], registers[i + distance] = self.shuffle(a, b, first), self.shuffle(a, b, second)
            distance //= 2
        return registers

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

    def pairs(self, low: Any, high: Any) -> Any:
        """Two registers rounded to bf16, in the low and high halves of 32 bits."""
        first, second = (self.builder.zext(self.narrowed(value), self.ints) for value in (low, high))
        return self.builder.or_(first, self.builder.shl(second, self.integer(16)))

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
        kind = ir.VectorType(_BFloat() if _NAMES_BFLOAT else I16, 16)
        words = ir.VectorType(I16, 16)
        both = [
            self.builder.bitcast(self.call("llvm.x86.avx512bf16.cvtneps2bf16.512", kind, table[0]), words)
            for table in (low, high)
        ]
        first, second = both
        return self.shuffle(first, second, range(32))

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

    def halves_at(self, base: Any) -> Any:
        """2 · lanes 16-bit integers from any byte on."""
        words = ir.VectorType(I16, 2 * self.lanes)
        return self.builder.load(self.address(base, 0, words), align=1)

    def neighbouring_rows(self, first: Any, second: Any) -> tuple[Any, Any]:
        """2 · lanes columns of two rows in bf16 as pairs in the halves of 32 bits, in two registers."""
        order = [index for column in range(2 * self.lanes) for index in (column, 2 * self.lanes + column)]
        parts = order[: 2 * self.lanes], order[2 * self.lanes :]
        low, high = (self.builder.bitcast(self.shuffle(first, second, part), self.ints) for part in parts)
        return low, high

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
