"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias: few tokens by the decode product in two passes, more in tiles."""

from __future__ import annotations

import math

import torch

from ...kernels.launch_config import LaunchConfig
from ...kernels.launch_table import launch_config
from ...kernels.lora_decode import lora_decode
from ...kernels.lora_linear import lora_linear as kernel
from ...kernels.split_sum import split_sum
from ...ops.by_storage import weight_shape
from .launch import architecture, launch
from .operands import dtype_name, factor, vector
from .weight import how_read, weight_arguments

Tensor = torch.Tensor

# programs that keep a device of this size busy; a split beyond that only adds partial sums
_PROGRAMS = 256


def path(tokens: int, device: torch.device, dtype: torch.dtype) -> str:
    """What runs for so many tokens: "decode" (K split, two passes) or "tiles"."""
    decode = launch_config("lora_decode", architecture(device), str(dtype).removeprefix("torch."), tokens)
    return "decode" if tokens <= decode["BLOCK_M"] else "tiles"


@torch.no_grad()
def lora_linear(
    x: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    tokens, in_features = x.shape
    out_features = weight_shape(data, layout)[0]
    y = x.new_empty((tokens, out_features))
    if not y.numel():
        return y
    arch, dtype = architecture(x.device), dtype_name(x)
    weight = weight_arguments(data, scales, layout, arch, packed_for=x.dtype)
    x = x.contiguous()
    epilogue = {
        "p": factor(P),
        "b_hat": factor(B_hat),
        "c": vector(c),
        "bias": vector(bias),
        "y": y,
        "M": tokens,
        "N": out_features,
        "R": 0 if P is None else P.shape[1],
    }
    if path(tokens, x.device, x.dtype) == "tiles":
        config = _within_block(launch_config("lora_linear", arch, dtype, tokens, how_read(weight)), weight)
        launch(x.device, ("y_ptr",), kernel, x=x, weight=weight, K=in_features, config=config, **epilogue)
        return y
    decode = _within_block(launch_config("lora_decode", arch, dtype, tokens, how_read(weight)), weight)
    share = _share(in_features, decode["BLOCK_K"], -(-out_features // decode["BLOCK_N"]))
    parts = x.new_empty((-(-in_features // share), tokens, out_features), dtype=torch.float32)
    if parts.numel():
        launch(
            x.device,
            ("parts_ptr",),
            lora_decode,
            x=x,
            weight=weight,
            parts=parts,
            M=tokens,
            N=out_features,
            K=in_features,
            share=share,
            config=decode,
        )
    config = launch_config("split_sum", arch, dtype, tokens)
    launch(x.device, ("y_ptr",), split_sum, summed=parts, S=parts.shape[0], config=config, **epilogue)
    return y


def _within_block(config: LaunchConfig, weight: dict) -> LaunchConfig:
    """BLOCK_K no longer than a block of the weight where a tile has one scale a row."""
    if not weight["PACKED"] or config["BLOCK_K"] <= weight["BLOCK_SIZE"]:
        return config
    blocks = {**dict(config.blocks), "BLOCK_K": weight["BLOCK_SIZE"]}
    return LaunchConfig(tuple(sorted(blocks.items())), config.num_warps, config.num_stages, config.target)


def _share(in_features: int, block_k: int, programs: int) -> int:
    """K's range for one part of the split: whole tiles, and enough parts to fill a device."""
    tiles = max(1, -(-in_features // block_k))
    split = min(tiles, max(1, _PROGRAMS // programs))
    return math.ceil(tiles / split) * block_k
