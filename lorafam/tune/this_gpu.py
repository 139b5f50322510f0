"""The GPU of this machine, as `search` takes it."""

from __future__ import annotations

import time

import torch

from ..backends import triton_gpu
from ..backends.gpu_timer import GpuTimer
from ..backends.triton_gpu.launch import architecture
from .gpu import Gpu


def this_gpu() -> Gpu:
    """The current CUDA device; the kernels must be able to run there (`selection.choose`)."""
    device = torch.device("cuda", torch.cuda.current_device())
    return Gpu(
        model=torch.cuda.get_device_name(device),
        architecture=architecture(device),
        device=device,
        ops=triton_gpu,
        timer=GpuTimer(device),
        clock=time.monotonic,
        probe=torch.cuda.synchronize,
    )
