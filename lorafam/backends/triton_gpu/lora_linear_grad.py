"""dx = (G ∘ c) W + drop'(Q A) in G's dtype."""

from __future__ import annotations

import torch

from ...kernels.launch_table import PACKED, launch_config
from ...kernels.lora_linear_grad import lora_linear_grad as kernel
from ...kernels.paths import STAGED, path_of
from ...ops.by_storage import Storage
from .launch import architecture, launch
from .operands import dropout_arguments, dtype_name, factor, vector
from .split import split_in
from .staged import can_be_staged, decoded_weight, product
from .weight import how_columns_are_read, weight_arguments

Tensor = torch.Tensor


@torch.no_grad()
def lora_linear_grad(
    grad_y: Tensor,
    data: Tensor,
    scales: list[Tensor],
    layout: list[int],
    c: Tensor | None,
    Q: Tensor | None,
    A: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
) -> Tensor:
    tokens, out_features = grad_y.shape
    storage = Storage(data, scales, layout)
    in_features = storage.shape[1]
    dx = grad_y.new_empty((tokens, in_features))
    if dx.numel():
        arch = architecture(grad_y.device)
        route = path_of("lora_linear_grad", arch, tokens, out_features, in_features, 0 if Q is None else Q.shape[1])
        if route.path == STAGED and can_be_staged(grad_y, layout):
            decoded = decoded_weight(storage, c, grad_y.dtype)
            H = None if A is None else A.detach().float()
            return product(grad_y, decoded, Q, H, None, seed, dropout_p, route.product, backward=True)
        weight = weight_arguments(storage, arch)
        read = how_columns_are_read(weight, in_features)
        config = launch_config(
            "lora_linear_grad",
            arch,
            dtype_name(grad_y),
            tokens,
            read,
            N=out_features,
            K=in_features,
            rank=0 if A is None else A.shape[0],
        )
        if read == PACKED:
            config = config.at_most(BLOCK_K=weight["BLOCK_SIZE"])
        split = split_in(
            grad_y.device,
            range_=out_features,
            turn=config["BLOCK_N"],
            tiles=-(-tokens // config["BLOCK_M"]) * -(-in_features // config["BLOCK_K"]),
            size=config["BLOCK_M"] * config["BLOCK_K"],
        )
        launch(
            grad_y.device,
            ("dx_ptr",),
            kernel,
            grad_y=grad_y.contiguous(),
            weight=weight,
            c=vector(c),
            q=factor(Q),
            a=factor(A),
            seed=seed,
            dx=dx,
            **split,
            M=tokens,
            N=out_features,
            K=in_features,
            R=0 if A is None else A.shape[0],
            dropout=dropout_arguments(seed, dropout_p),
            config=config,
        )
    return dx
