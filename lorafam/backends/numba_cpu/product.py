"""The platform's matrix product in fp32 or fp64, by the library that multiplies faster on this processor.

torch.mm asks MKL, slow on AMD processors with AVX-512; oneDNN, which torch carries too, is about twice as fast there.
It adds a whole dot product up in order, which at 2,048 terms has 2.2 times MKL's error: too much for the ratio rule. So
it gets `TERMS` at a time, and those sums are added. The choice depends on the processor and the shape alone, never on a
measurement, so that the same machine gives the same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from ...compat.torch import onednn_linear

Tensor = torch.Tensor

# 1.15 times MKL's error; 1.35 at 384
TERMS = 256
# with fewer rows MKL is as fast
_LEAST_ROWS = 16


@functools.cache
def uses_onednn() -> bool:
    """Whether fp32 products may go to oneDNN: on AMD processors with AVX-512."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()


def _suits_onednn(a: Tensor) -> bool:
    return a.dtype == torch.float32 and a.shape[0] >= _LEAST_ROWS and a.shape[1] > 0 and uses_onednn()


def sum_of_products(factors: Sequence[tuple[Tensor, Tensor]], start: Tensor | None = None) -> Tensor:
    """start + Σ a bᵀ [M, N] over pairs a [M, K], b [N, K], K at most `TERMS`, b or bᵀ contiguous; by oneDNN."""
    linear = onednn_linear()
    result = start
    for a, b in factors:
        alone = result is None
        result = linear(a, b, None, "none", [], "") if alone else linear.binary(a, result, b, None, "add")
    assert result is not None, "no factors"
    return result


def product(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a b + bias: [M, K], [K, N] → [M, N], any strides; bias [N]."""
    if _goes_to_onednn(a, b):
        y = sum_of_products(_pairs(a, b))
        return y if bias is None else y.add_(bias)
    return torch.mm(a, b) if bias is None else torch.addmm(bias, a, b)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """out + a b; `out` may be overwritten."""
    return sum_of_products(_pairs(a, b), out) if _goes_to_onednn(a, b) else out.addmm_(a, b)


def _goes_to_onednn(a: Tensor, b: Tensor) -> bool:
    # a part of a transposed b would be strided both ways, where oneDNN is a thousand times slower
    return b.is_contiguous() and _suits_onednn(a)


def _pairs(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    return [(part, rows.T) for part, rows in zip(a.split(TERMS, 1), b.split(TERMS), strict=True)]
