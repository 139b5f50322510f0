"""Q = G (c ∘ B̂), dB̂ = c ∘ (Gᵀ P), dA = Qᵀ drop(x), dm = Σ G ∘ (Y − bias) / m, dbias = Σ G, in fp32."""

from __future__ import annotations

import torch

from ...kernels.launch_table import launch_config
from ...kernels.lora_factors_grad import lora_factors_grad as kernel
from .launch import architecture, launch
from .lora_grad_pass import one_pass, pass_config
from .lora_project import project
from .operands import dropout_arguments, dtype_name, factor, vector
from .split import split_in

Tensor = torch.Tensor


@torch.no_grad()
def lora_factors_grad(
    grad_y: Tensor,
    x: Tensor,
    P: Tensor,
    B_hat: Tensor,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    magnitude: Tensor | None,
    seed: Tensor | None,
    dropout_p: float,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_y, c = grad_y.contiguous(), vector(c)
    y = None if y is None else y.contiguous()
    config = pass_config(grad_y, B_hat.shape[1])
    if config is not None:
        Q, dB_hat, dm, dbias = one_pass(grad_y, P, B_hat, c, y, bias, magnitude, needs_bias, config)
    else:
        Q, dB_hat, dm, dbias = _two_passes(grad_y, P, B_hat, c, y, bias, magnitude, needs_bias)
    dA = Q.new_empty((B_hat.shape[1], x.shape[1]))
    no_sums = dict.fromkeys(("saved_y", "bias", "magnitude", "dm", "dbias"))
    _factor_grad(x.contiguous(), Q, None, seed, dA, dA.stride()[::-1], dropout_p, no_sums)
    return Q, dA, dB_hat, dm, dbias


def _two_passes(
    grad_y: Tensor,
    P: Tensor,
    B_hat: Tensor,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    magnitude: Tensor | None,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, dB̂, dm and dbias; G is read for Q and again for the rest."""
    out_features = B_hat.shape[0]
    Q = project(grad_y, B_hat.T, c, None, 0.0)
    dB_hat = Q.new_empty(B_hat.shape)
    dm = Q.new_empty(out_features if magnitude is not None else 0)
    dbias = Q.new_empty(out_features if needs_bias else 0)
    sums = {
        "saved_y": y,
        "bias": vector(bias) if magnitude is not None else None,
        "magnitude": vector(magnitude),
        "dm": dm if magnitude is not None else None,
        "dbias": dbias if needs_bias else None,
    }
    _factor_grad(grad_y, factor(P), c, None, dB_hat, dB_hat.stride(), 0.0, sums)
    return Q, dB_hat, dm, dbias


def _factor_grad(
    x: Tensor,
    f: Tensor | None,
    scale: Tensor | None,
    seed: Tensor | None,
    grad: Tensor,
    strides: tuple[int, ...],
    dropout_p: float,
    sums: dict[str, Tensor | None],
) -> None:
    """grad = scale ∘ drop(x)ᵀ f, and the sums asked for."""
    if not grad.numel():
        return
    tokens, columns = x.shape
    rank = grad.numel() // columns
    config = launch_config("lora_factors_grad", architecture(x.device), dtype_name(x), tokens, K=columns, rank=rank)
    split = split_in(
        x.device,
        range_=tokens,
        turn=config["BLOCK_M"],
        tiles=-(-columns // config["BLOCK_C"]) * -(-rank // config["BLOCK_R"]),
        # the sums over tokens too
        size=config["BLOCK_C"] * (config["BLOCK_R"] + 2),
    )
    launch(
        x.device,
        ("grad_ptr", "dm_ptr", "dbias_ptr"),
        kernel,
        x=x,
        f=f,
        s=scale,
        seed=seed,
        grad=grad,
        **split,
        M=tokens,
        C=columns,
        R=rank,
        strides=strides,
        dropout=dropout_arguments(seed, dropout_p),
        config=config,
        **sums,
    )
