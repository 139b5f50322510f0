"""What this processor reaches where nothing else is in the way: fused multiply-adds in registers, and a copy."""

from __future__ import annotations

import ctypes
import statistics
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from llvmlite import binding

from lorafam.backends.numba_cpu.processor import processor

# enough to cover a multiply-add's latency on two ports
_CHAINS = 10
_TURNS = 2_000_000
_COPIED = 512 * 2**20
_REPEATS = 5


class Peaks(NamedTuple):
    """fp32 operations a second (a multiply-add is two) and bytes a second (read and written), on torch's threads."""

    flops: float
    bytes: float


def peaks() -> Peaks:
    threads = torch.get_num_threads()
    source, target = torch.ones(_COPIED // 4), torch.empty(_COPIED // 4)
    copied = _fastest(lambda: target.copy_(source))
    lanes = processor().lanes
    engine, loop = _multiply_adds(lanes)
    multiplied = _fastest(lambda: _together(loop, threads))
    del engine
    return Peaks(2.0 * lanes * _CHAINS * _TURNS * threads / multiplied, 2 * _COPIED / copied)


def _fastest(call: Callable[[], object]) -> float:
    """Median seconds: a peak that is seen once in a while is none."""
    call()
    taken = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _together(call: Callable[[int], float], threads: int) -> None:
    # ctypes lets go of the interpreter meanwhile
    others = [threading.Thread(target=call, args=(_TURNS,)) for _ in range(threads - 1)]
    for other in others:
        other.start()
    call(_TURNS)
    for other in others:
        other.join()


def _multiply_adds(lanes: int) -> tuple[binding.ExecutionEngine, Callable[[int], float]]:
    """A function of turns, each of `_CHAINS` independent multiply-adds of registers; and what keeps its code."""
    wide = f"<{lanes} x float>"
    chains = range(_CHAINS)
    starts = "\n".join(f"  %a{i} = phi {wide} [ zeroinitializer, %entry ], [ %b{i}, %loop ]" for i in chains)
    steps = "\n".join(
        f"  %b{i} = call {wide} @llvm.fma.v{lanes}f32({wide} %a{i}, {wide} %x, {wide} %x)" for i in chains
    )
    sums = "\n".join(f"  %s{i + 1} = fadd {wide} %s{i}, %b{i}" for i in range(1, _CHAINS))
    module = binding.parse_assembly(f"""
declare {wide} @llvm.fma.v{lanes}f32({wide}, {wide}, {wide})
define float @multiply_adds(i64 %turns, float %value) {{
entry:
  %one = insertelement {wide} undef, float %value, i32 0
  %x = shufflevector {wide} %one, {wide} undef, <{lanes} x i32> zeroinitializer
  br label %loop
loop:
  %turn = phi i64 [ 0, %entry ], [ %next, %loop ]
{starts}
{steps}
  %next = add i64 %turn, 1
  %more = icmp slt i64 %next, %turns
  br i1 %more, label %loop, label %done
done:
  %s1 = fadd {wide} %b0, %b0
{sums}
  %result = extractelement {wide} %s{_CHAINS}, i32 0
  ret float %result
}}""")
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    features = binding.get_host_cpu_features().flatten()
    machine = target.create_target_machine(cpu=binding.get_host_cpu_name(), features=features, opt=3)
    engine = binding.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64, ctypes.c_float)(
        engine.get_function_address("multiply_adds")
    )
    return engine, lambda turns: function(turns, 0.5)
