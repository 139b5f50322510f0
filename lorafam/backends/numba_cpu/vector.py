"""Sixteen levels in vector registers: the look-up that decodes 4-bit codes, as LLVM vector code.

    out[i] = levels[code i] · scale          code 2j is the high nibble of byte j, code 2j + 1 the low one

AVX-512 looks up 16 codes with one `vpermps`; AVX2 permutes the two halves of the table and blends on bit 3 of the code.
Other processors look up one level after the other (`decode.py`). One product and one rounding per weight on each path,
so their bits agree.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic


def lanes() -> int:
    """Weights decoded at once: 16 with AVX-512, 8 with AVX2, 0 where one level is looked up after the other.

    Asks for what Numba compiles for, which NUMBA_CPU_FEATURES may restrict; Numba's cache on disk is kept apart by the
    same.
    """
    features = cpu_target.target_context.codegen().magic_tuple()[2].split(",")
    if {"+avx512f", "+avx512vl", "+avx512bw"} <= set(features):
        return 16
    return 8 if "+avx2" in features else 0


LANES = lanes()
_F32, _I8, _I32 = ir.FloatType(), ir.IntType(8), ir.IntType(32)


@intrinsic
def decode_vectors(typingctx, codes, byte, out, position, levels, scale, count):
    """`count` times `LANES` weights: codes uint8 from `byte` on, times fp32 `scale`, to out fp32 from `position` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        def pointer(index: int, offset: Any, kind: Any) -> Any:
            array = context.make_array(signature.args[index])(context, builder, args[index])
            return builder.bitcast(builder.gep(array.data, [offset]), kind.as_pointer())

        zero = ir.Constant(ir.IntType(64), 0)
        floats, packed = ir.VectorType(_F32, LANES), ir.VectorType(_I8, LANES // 2)
        source, target = pointer(0, args[1], _I8), pointer(2, args[3], _F32)
        table = _load_table(builder, pointer(4, zero, _F32))
        factor = _splat(builder, args[5], floats)
        with cgutils.for_range(builder, args[6]) as loop:
            step = ir.Constant(loop.index.type, LANES)
            here = builder.mul(loop.index, step)
            half = builder.lshr(here, ir.Constant(loop.index.type, 1))
            raw = builder.load(builder.bitcast(builder.gep(source, [half]), packed.as_pointer()), align=1)
            weights = builder.fmul(_look_up(builder, table, _nibbles(builder, raw)), factor)
            builder.store(weights, builder.bitcast(builder.gep(target, [here]), floats.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.void(codes, types.int64, out, types.int64, levels, types.float32, types.int64), codegen


def _nibbles(builder: Any, raw: Any) -> Any:
    """Bytes as the codes in them, high nibble first, in 32 bits each."""
    width = LANES // 2
    four, low = ([ir.Constant(_I8, value)] * width for value in (4, 15))
    high_codes = builder.lshr(raw, ir.Constant(raw.type, four))
    low_codes = builder.and_(raw, ir.Constant(raw.type, low))
    order = [index for pair in range(width) for index in (pair, width + pair)]
    mask = ir.Constant(ir.VectorType(_I32, LANES), [ir.Constant(_I32, index) for index in order])
    return builder.zext(builder.shuffle_vector(high_codes, low_codes, mask), ir.VectorType(_I32, LANES))


def _load_table(builder: Any, levels: Any) -> list[Any]:
    """The sixteen levels as one register of 16 or two of 8."""
    kind = ir.VectorType(_F32, LANES)
    parts = range(0, 16, LANES)
    return [
        builder.load(builder.bitcast(builder.gep(levels, [ir.Constant(_I32, part)]), kind.as_pointer()), align=4)
        for part in parts
    ]


def _look_up(builder: Any, table: list[Any], codes: Any) -> Any:
    floats, ints = table[0].type, codes.type
    name = "llvm.x86.avx512.permvar.sf.512" if LANES == 16 else "llvm.x86.avx2.permps"
    permute = cgutils.get_or_insert_function(builder.module, ir.FunctionType(floats, [floats, ints]), name)
    if LANES == 16:
        return builder.call(permute, [table[0], codes])
    low, high = (builder.call(permute, [half, codes]) for half in table)
    seven = ir.Constant(ints, [ir.Constant(_I32, 7)] * LANES)
    return builder.select(builder.icmp_unsigned(">", codes, seven), high, low)


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    single = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, kind.count), None)
    return builder.shuffle_vector(single, ir.Constant(kind, ir.Undefined), zeros)
