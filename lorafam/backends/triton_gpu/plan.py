"""What `lora_linear` would do for a weight and a number of tokens, without doing it."""

from __future__ import annotations

import torch

from ...kernels.launch_config import LaunchConfig
from ...kernels.launch_table import DENSE, ELEMENTS, PACKED, launch_config
from ...kernels.paths import STAGED, path_of
from ...ops.by_storage import Layout
from ..plan import Plan
from .launch import architecture
from .lora_linear import FEW
from .roofline import roofline


def plan(
    tokens: int,
    shape: tuple[int, int],
    weight_bytes: int,
    layout: Layout | None,
    device: torch.device,
    dtype: torch.dtype,
    rank: int,
) -> Plan:
    """For W [N, K] of `weight_bytes` (`layout` None: dense) and tokens in `dtype`, through a rank (0: none)."""
    (N, K), size = shape, torch.empty(0, dtype=dtype).element_size()
    arch, name = architecture(device), str(dtype).removeprefix("torch.")
    whole = layout is not None and K % layout.block_size == 0 and dtype != torch.float32
    flops = 2 * tokens * N * (K + rank)
    tokens_bytes = size * tokens * (K + N) + 4 * rank * (tokens + N)
    route = path_of("lora_linear", arch, tokens, N, K, rank)
    if whole and route.path == STAGED:
        path = "staged"
        config = launch_config("nf4_dequantize", arch, name, N=N, K=K)
        told = f"nf4_dequantize {described(config)}, then {route.product}"
        weight_traffic = weight_bytes + 2 * size * N * K
    else:
        read = DENSE if layout is None else PACKED if whole else ELEMENTS
        config = launch_config("lora_linear", arch, name, tokens, read, N=N, K=K, rank=rank)
        path, told = "decode" if config["BLOCK_M"] <= FEW else "tiles", f"lora_linear {described(config)}"
        weight_traffic = weight_bytes * -(-tokens // config["BLOCK_M"])
    moved = weight_traffic + tokens_bytes if tokens else 0
    limits = roofline(device, arch)
    return Plan(path, told, moved, flops, None if limits is None else limits.seconds(moved, flops))


def described(config: LaunchConfig) -> str:
    """ "BLOCK_K 128, …, 4 warps, 3 stages"."""
    blocks = [f"{name} {size}" for name, size in config.blocks]
    return ", ".join([*blocks, f"{config.num_warps} warps", f"{config.num_stages} stages"])
