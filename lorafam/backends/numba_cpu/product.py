"""The platform's matrix product in fp32 or fp64, by the library that multiplies faster on this processor.

torch.mm asks MKL, slow on AMD processors with AVX-512; oneDNN, which torch carries too, is about twice as fast there.
It adds a whole dot product up in order, which at 2,048 terms has 2.2 times MKL's error: too much for the ratio rule. So
it gets `TERMS` at a time, and those sums are added. The choice depends on the processor and the shape alone, never on a
measurement, so that the same machine gives the same bits.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

Tensor = torch.Tensor

# 1.15 times MKL's error; 1.35 at 384
TERMS = 256
# with fewer rows MKL is as fast
_LEAST_ROWS = 16
_LEAST_ROWS_FOR_PLANES = 64


@functools.cache
def uses_onednn() -> bool:
    """Whether fp32 products may go to oneDNN: on AMD processors with AVX-512."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()


def suits_planes(a: Tensor) -> bool:
    """Whether a product with first factor a [M, K] is faster by oneDNN with the second in planes."""
    return _suits_onednn(a, _LEAST_ROWS_FOR_PLANES)


def _suits_onednn(a: Tensor, least_rows: int = _LEAST_ROWS) -> bool:
    return a.dtype == torch.float32 and a.shape[0] >= least_rows and a.shape[1] > 0 and uses_onednn()


def product_with_planes(a: Tensor, planes: list[Tensor], out: Tensor | None = None) -> Tensor:
    """out + a Wᵀ: [M, K], W's columns as contiguous planes [N, at most `TERMS`] → [M, N]; `out` may be overwritten."""
    linear = torch.ops.mkldnn._linear_pointwise
    start = 0
    for plane in planes:
        part = a[:, start : start + plane.shape[1]]
        start += plane.shape[1]
        alone = out is None
        out = linear(part, plane, None, "none", [], "") if alone else linear.binary(part, out, plane, None, "add")
    assert out is not None, "no planes"
    return out


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b: [M, K], [K, N] → [M, N], any strides."""
    terms = a.shape[1]
    # a part of a transposed b would be strided both ways, where oneDNN is a thousand times slower
    if not (b.is_contiguous() and _suits_onednn(a)):
        return torch.mm(a, b)
    # what torch.compile makes of a linear layer; its weight is [N, K]
    linear = torch.ops.mkldnn._linear_pointwise
    result = linear(a[:, :TERMS], b[:TERMS].T, None, "none", [], "")
    for start in range(TERMS, terms, TERMS):
        result = linear.binary(a[:, start : start + TERMS], result, b[start : start + TERMS].T, None, "add")
    return result


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b, in place."""
    if b.is_contiguous() and _suits_onednn(a):
        out.add_(product(a, b))
    else:
        out.addmm_(a, b)
