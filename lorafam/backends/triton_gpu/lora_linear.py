"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias in tiles; K is split where there are too few of them."""

from __future__ import annotations

import torch

from ...kernels.launch_config import LaunchConfig
from ...kernels.launch_table import launch_config
from ...kernels.lora_linear import lora_linear as kernel
from ...kernels.paths import STAGED, path_of
from ...ops.by_storage import weight_shape
from .launch import architecture, launch
from .operands import dtype_name, factor, vector
from .split import split_in
from .staged import can_be_staged, decoded_weight, product, scaled_rows
from .weight import how_read, weight_arguments

Tensor = torch.Tensor

# tokens up to which a product is bound by reading codes
_FEW = 16


def path(tokens: int, N: int, K: int, device: torch.device, dtype: torch.dtype, four_bit: bool) -> str:
    """What runs for so many tokens and W [N, K]: "decode" (one tile of few tokens), "tiles" or "staged"."""
    arch = architecture(device)
    if four_bit and dtype != torch.float32 and path_of("lora_linear", arch, tokens, N, K).path == STAGED:
        return "staged"
    config = launch_config("lora_linear", arch, str(dtype).removeprefix("torch."), tokens, N=N, K=K)
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
    route = path_of("lora_linear", arch, tokens, out_features, in_features)
    if route.path == STAGED and can_be_staged(x, layout):
        decoded = decoded_weight(data, scales, layout, c, x.dtype)
        H = None if B_hat is None else scaled_rows(B_hat, c).T
        return product(x, decoded, P, H, bias, None, 0.0, route.product, backward=False)
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
    while weight["PACKED"] and in_features % turn:
        turn //= 2
    return config.at_most(BLOCK_K=turn)
