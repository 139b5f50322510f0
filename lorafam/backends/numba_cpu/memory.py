"""Single values at addresses, as Numba intrinsics and functions over them."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from .vectors import F32, I8, I16, I32, I64, fetch_ahead


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
def call_at(typingctx: Any, function: Any, argument: Any) -> Any:
    """Calls the compiled `void function(int64)` at an address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Asks for the cache line at an address, which need not be ours."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        fetch_ahead(builder, args[0])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit
def bf16_bits(value: Any) -> Any:
    """An fp32 rounded to the nearest bf16, ties to even; NaN stays NaN."""
    word = word_of(value)
    if word & np.uint32(0x7FFFFFFF) > np.uint32(0x7F800000):
        return np.uint32(word >> np.uint32(16)) | np.uint32(0x40)
    return np.uint32(word + np.uint32(0x7FFF) + (word >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)


@njit
def value_at(address: int, index: int, narrow: int) -> float:
    """An fp32 or, where narrow, bf16 element."""
    if narrow:
        return float_of(np.uint32(np.uint32(load_half(address + 2 * index)) << np.uint32(16)))
    return load_float(address + 4 * index)


@njit
def store_value(address: int, index: int, value: float, narrow: int) -> None:
    """Writes an fp32 or, where narrow, bf16 element."""
    if narrow:
        store_half(address + 2 * index, np.uint16(bf16_bits(value)))
    else:
        store_float(address + 4 * index, value)


@njit
def clear(address: int, count: int) -> None:
    """That many fp32 to 0."""
    for i in range(count):
        store_float(address + 4 * i, np.float32(0))
