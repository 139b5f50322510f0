"""A GPU's limits as far as its driver and its architecture tell them, for modelled times: never measured ones."""

from __future__ import annotations

from typing import NamedTuple

import torch

# dense bf16 operations a clock and multiprocessor with sums in fp32: the tables of NVIDIA's architecture white papers
# (A100, GA102, Ada, H100, Blackwell, RTX Blackwell), peak over multiprocessors and boost clock
_TENSOR_FLOPS = {"sm_80": 2048, "sm_86": 512, "sm_89": 512, "sm_90": 4096, "sm_100": 8192, "sm_120": 512}


class Roofline(NamedTuple):
    """Bytes a second from memory, and floating-point operations a second on tensor cores in bf16."""

    bandwidth: float
    flops: float

    def seconds(self, bytes_: int, flops: int) -> float:
        """The longer of moving the bytes and forming the products."""
        return max(bytes_ / self.bandwidth, flops / self.flops)


def roofline(device: torch.device, architecture: str) -> Roofline | None:
    """Of a CUDA GPU; None for any other device, and where the driver or the table above doesn't tell."""
    if device.type != "cuda" or architecture not in _TENSOR_FLOPS:
        return None
    properties = torch.cuda.get_device_properties(device)
    clocks = [getattr(properties, name, 0) for name in ("memory_clock_rate", "memory_bus_width", "clock_rate")]
    if not all(clocks):
        return None
    # kHz, two transfers a clock; bits
    memory, width, core = clocks
    flops = _TENSOR_FLOPS[architecture] * properties.multi_processor_count * core * 1e3
    return Roofline(2 * memory * 1e3 * width / 8, flops)
