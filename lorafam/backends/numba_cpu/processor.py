"""What the processor can do, which of three ways the kernels go, and how wide their tiles are.

    avx512     16 lanes, a look-up of sixteen levels is one permutation; with AVX512_BF16, pairs of bf16 are multiplied
    avx2       8 lanes, a look-up is two permutations and a choice
    portable   4 lanes, levels are looked up one after the other; any processor

`LORAFAM_CPU` forces one. All that Numba compiles for counts, so NUMBA_CPU_FEATURES restricts it too.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import NamedTuple

from ...compat.numba import features

VARIABLE = "LORAFAM_CPU"


class Processor(NamedTuple):
    """`lanes` fp32 in a register; a tile has `rows` weights by one or two registers of tokens."""

    name: str
    lanes: int
    rows: int
    bf16: bool


_AVX512 = {"+avx512f", "+avx512vl", "+avx512bw", "+avx512dq"}
_NAMES = ("avx512", "avx2", "portable")


@functools.cache
def model_name() -> str:
    """The processor's own name, as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def processor() -> Processor:
    """The way chosen here. Raises ValueError for an unknown LORAFAM_CPU, RuntimeError for one this machine can't go."""
    return _choose(os.environ.get(VARIABLE, ""))


@functools.cache
def _choose(wanted: str) -> Processor:
    have = features()
    able = {
        "avx512": have >= _AVX512,
        "avx2": have >= {"+avx2", "+fma"},
        "portable": True,
    }
    if wanted and wanted not in _NAMES:
        raise ValueError(f"{VARIABLE}: expected one of {', '.join(_NAMES)}, got {wanted!r}")
    if wanted and not able[wanted]:
        raise RuntimeError(f"{VARIABLE}={wanted}: Numba doesn't compile for it on this machine")
    name = wanted or next(name for name in _NAMES if able[name])
    if name == "avx512":
        return Processor(name, 16, 8, "+avx512bf16" in have)
    return Processor(name, 8, 4, False) if name == "avx2" else Processor(name, 4, 4, False)
