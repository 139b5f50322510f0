"""PTX 8.6's sums and products of mixed precision (`sub.rn.f32.f16`, sm_100 on), written out for ptxsim, which takes
their last type for that of all operands.

d = a ∘ c in fp32, a (of fma: a and b) fp16 or bf16, which fp32 holds exactly: a conversion and the fp32 instruction
give the same bits (PTX ISA, "Mixed Precision Floating Point Instructions").
"""

from __future__ import annotations

import functools
import re

_MIXED = re.compile(r"(add|sub|fma)((?:\.(?:rn|rz|rm|rp|sat))*\.f32)\.(f16|bf16)\s+([^;]+);")


# a kernel is launched many times
@functools.lru_cache(64)
def written_out(ptx: str) -> str:
    """`ptx` without them."""
    return _MIXED.sub(_one, ptx)


def _one(found: re.Match[str]) -> str:
    name, how, narrow, operands = found.groups()
    result, *sources = (operand.strip() for operand in operands.split(","))
    wide = [f"%wide{index}" for index in range(len(sources) - 1)]
    converted = " ".join(f"cvt.f32.{narrow} {to}, {of};" for to, of in zip(wide, sources, strict=False))
    return f"{{ .reg .b32 {', '.join(wide)}; {converted} {name}{how} {', '.join([result, *wide, sources[-1]])}; }}"
