"""Y = c ∘ (x Wᵀ + P B̂ᵀ) + bias in tiles; K is split where there are too few of them."""

from __future__ import annotations

from typing import Any

import torch

from ...kernels.launch_config import LaunchConfig
from ...kernels.launch_table import launch_config
from ...kernels.lora_linear import lora_linear as kernel
from ...kernels.paths import STAGED, path_of
from ...ops.by_storage import Storage
from .launch import architecture, launch
from .operands import dtype_name, factor, vector
from .split import split_in
from .staged import can_be_staged, decoded_weight, product, scaled_rows
from .weight import how_read, weight_arguments

Tensor = torch.Tensor

# tokens up to which a product is bound by reading codes
FEW = 16
# of a row's scales, in bytes: two programs then fetch a sector of them, and what they fetch is 1.03 of the least
HALF_A_SECTOR = 16


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
    storage = Storage(data, scales, layout)
    out_features = storage.shape[0]
    arch = architecture(x.device)
    route = path_of("lora_linear", arch, tokens, out_features, in_features, 0 if P is None else P.shape[1])
    if route.path == STAGED and can_be_staged(x, layout):
        decoded = decoded_weight(storage, c, x.dtype)
        H = None if B_hat is None else scaled_rows(B_hat, c).T
        return product(x, decoded, P, H, bias, None, 0.0, route.product, backward=False)
    y = x.new_empty((tokens, out_features))
    if not y.numel():
        return y
    weight = weight_arguments(storage, arch, packed_for=x.dtype)
    config = whole_turns(
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
    split = shared_among(x.device, config, weight, tokens, [out_features], in_features)
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


def shared_among(
    device: torch.device,
    config: LaunchConfig,
    weight: dict[str, Any],
    tokens: int,
    out_features: list[int],
    in_features: int,
) -> dict[str, Any]:
    """`split_in` of K for products of so many output features, all in one launch."""
    scales = weight["absmax_ptr"]
    return split_in(
        device,
        range_=in_features,
        turn=config["BLOCK_K"],
        tiles=-(-tokens // config["BLOCK_M"]) * sum(-(-N // config["BLOCK_N"]) for N in out_features),
        size=config["BLOCK_M"] * config["BLOCK_N"],
        span=HALF_A_SECTOR // scales.element_size() * weight["BLOCK_SIZE"] if weight["PACKED"] else 1,
    )


def whole_turns(config: LaunchConfig, weight: dict[str, Any], in_features: int) -> LaunchConfig:
    """BLOCK_K that divides K where rows have whole blocks: no turn of the loop has a tail."""
    turn = config["BLOCK_K"]
    while weight["PACKED"] and in_features % turn:
        turn //= 2
    return config.at_most(BLOCK_K=turn)
