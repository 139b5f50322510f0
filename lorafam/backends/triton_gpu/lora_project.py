"""P = drop(x) Aᵀ [M, r] fp32."""

from __future__ import annotations

import torch

from ...kernels.launch_table import launch_config
from ...kernels.lora_project import lora_project as kernel
from .launch import architecture, launch
from .operands import dropout_arguments, dtype_name
from .split import split_in

Tensor = torch.Tensor


@torch.no_grad()
def lora_project(x: Tensor, A: Tensor, seed: Tensor | None, dropout_p: float) -> Tensor:
    return project(x, A, None, seed, dropout_p)


def project(x: Tensor, A: Tensor, c: Tensor | None, seed: Tensor | None, dropout_p: float) -> Tensor:
    """drop(x) (A ∘ c)ᵀ [M, r]; A [r, K] with any strides, c [K]."""
    tokens, features = x.shape
    P = x.new_empty((tokens, A.shape[0]), dtype=torch.float32)
    if P.numel():
        config = launch_config(
            "lora_project", architecture(x.device), dtype_name(x), tokens, K=features, rank=A.shape[0]
        )
        split = split_in(
            x.device,
            range_=features,
            turn=config["BLOCK_K"],
            tiles=-(-tokens // config["BLOCK_M"]) * -(-A.shape[0] // config["BLOCK_R"]),
            size=config["BLOCK_M"] * config["BLOCK_R"],
        )
        launch(
            x.device,
            ("p_ptr",),
            kernel,
            x=x.contiguous(),
            a=A,
            c=c,
            seed=seed,
            p=P,
            **split,
            M=tokens,
            K=features,
            R=A.shape[0],
            strides=A.stride(),
            dropout=dropout_arguments(seed, dropout_p),
            config=config,
        )
    return P
