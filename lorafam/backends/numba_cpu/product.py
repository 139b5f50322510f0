"""The platform's matrix product in fp32 or fp64, by the library that multiplies faster on this processor.

torch.mm asks MKL, slow on AMD processors with AVX-512; oneDNN, which torch carries too, is not: on two cores of
a Zen 5, 430 to 450 GFLOP/s against 180 (129 x 640 x 2048). The choice depends on the processor alone, never on a
measurement, so that the same machine gives the same bits.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch

Tensor = torch.Tensor


@functools.cache
def uses_onednn() -> bool:
    """Whether fp32 products go to oneDNN: on AMD processors with AVX-512."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b: [M, K], [K, N] → [M, N], any strides."""
    if a.dtype == torch.float32 and a.shape[1] and uses_onednn():
        # what torch.compile makes of a linear layer; its weight is [N, K]
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return torch.mm(a, b)


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a b, in place."""
    if a.dtype == torch.float32 and uses_onednn():
        out.add_(product(a, b))
    else:
        out.addmm_(a, b)
