"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias in tiles; K is split where there are too few of them."""

from __future__ import annotations

import torch

from ...kernels.launch_config import LaunchConfig
from ...kernels.launch_table import launch_config
from ...kernels.lora_linear import lora_linear as kernel
from ...ops.by_storage import weight_shape
from .launch import architecture, launch
from .operands import dtype_name, factor, vector
from .split import split_in
from .weight import how_read, weight_arguments

Tensor = torch.Tensor

# tokens up to which a product is bound by reading codes
_FEW = 16


def path(tokens: int, device: torch.device, dtype: torch.dtype) -> str:
    """What runs for so many tokens: "decode" (one tile of few tokens) or "tiles"."""
    config = launch_config("lora_linear", architecture(device), str(dtype).removeprefix("torch."), tokens)
    return "decode" if config["BLOCK_M"] <= _FEW else "tiles"


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
    arch = architecture(x.device)
    weight = weight_arguments(data, scales, layout, arch, packed_for=x.dtype)
    config = _whole_turns(
        launch_config(
            "lora_linear",
            arch,
            dtype_name(x),
            tokens,
            how_read(weight),
            N=out_features,
            K=in_features,
            rank=0 if P is None else P.shape[1],
        ),
        weight,
        in_features,
    )
    split = split_in(
        x.device,
        range_=in_features,
        turn=config["BLOCK_K"],
        tiles=-(-tokens // config["BLOCK_M"]) * -(-out_features // config["BLOCK_N"]),
        size=config["BLOCK_M"] * config["BLOCK_N"],
    )
    launch(
        x.device,
        ("y_ptr",),
        kernel,
        x=x.contiguous(),
        weight=weight,
        p=factor(P),
        b_hat=factor(B_hat),
        c=vector(c),
        bias=vector(bias),
        y=y,
        **split,
        M=tokens,
        N=out_features,
        K=in_features,
        R=0 if P is None else P.shape[1],
        config=config,
    )
    return y


def _whole_turns(config: LaunchConfig, weight: dict, in_features: int) -> LaunchConfig:
    """BLOCK_K that divides K where rows have whole blocks: no turn of the loop has a tail."""
    turn = config["BLOCK_K"]
    if not weight["PACKED"]:
        return config
    while in_features % turn:
        turn //= 2
    blocks = {**dict(config.blocks), "BLOCK_K": turn}
    return LaunchConfig(tuple(sorted(blocks.items())), config.num_warps, config.num_stages, config.target)
