"""Q, dB̂, dm and dbias from one pass over dY, where the rank makes that cheaper than two."""

from __future__ import annotations

import torch

from ...kernels.launch_config import LaunchConfig
from ...kernels.launch_table import launch_config
from ...kernels.lora_grad_pass import lora_grad_pass as kernel
from .launch import architecture, launch
from .operands import dtype_name, factor, vector
from .split import split_in

Tensor = torch.Tensor


def pass_config(grad_y: Tensor, rank: int) -> LaunchConfig | None:
    """The configuration of one pass; None where two read and write less.

    One pass saves a reading of dY [M, N], and leaves a part of dB̂ [N, r] in fp32 for each tile of tokens, which is
    written and read again: 8 N r bytes against N BLOCK_M times the size of an element. One tile's part is the result.
    """
    tokens = grad_y.shape[0]
    arch, dtype = architecture(grad_y.device), dtype_name(grad_y)
    config = launch_config("lora_grad_pass", arch, dtype, tokens, K=grad_y.shape[1], rank=rank)
    if not tokens or rank > config["BLOCK_R"]:
        return None
    cheaper = 8 * rank < config["BLOCK_M"] * grad_y.element_size()
    return config if cheaper or tokens <= config["BLOCK_M"] else None


def one_pass(
    grad_y: Tensor,
    P: Tensor,
    B_hat: Tensor,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    magnitude: Tensor | None,
    needs_bias: bool,
    config: LaunchConfig,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(Q [M, r], dB̂ [N, r], dm, dbias [N] or [0]), all fp32; `grad_y` and `y` [M, N] contiguous, M > 0."""
    (tokens, out_features), rank = grad_y.shape, B_hat.shape[1]
    tiles = -(-tokens // config["BLOCK_M"])
    Q = torch.empty((tokens, rank), device=grad_y.device)
    b_parts = Q.new_empty((tiles, out_features, rank))
    dm_parts = Q.new_empty((tiles, out_features)) if magnitude is not None else None
    dbias_parts = Q.new_empty((tiles, out_features)) if needs_bias else None
    size = config["BLOCK_M"] * config["BLOCK_R"]
    split = split_in(grad_y.device, range_=out_features, turn=config["BLOCK_N"], tiles=tiles, size=size)
    if Q.numel() and out_features:
        launch(
            grad_y.device,
            ("q_ptr", "b_parts_ptr", "dm_parts_ptr", "dbias_parts_ptr"),
            kernel,
            grad_y=grad_y,
            p=factor(P),
            b_hat=factor(B_hat),
            c=c,
            saved_y=y if magnitude is not None else None,
            bias=vector(bias) if magnitude is not None else None,
            q=Q,
            b_parts=b_parts,
            dm_parts=dm_parts,
            dbias_parts=dbias_parts,
            **split,
            M=tokens,
            N=out_features,
            R=rank,
            config=config,
        )
    dB_hat = _sum(b_parts)
    if c is not None:
        dB_hat *= c.float()[:, None]
    dm = Q.new_empty(0)
    if dm_parts is not None and magnitude is not None:
        dm = _sum(dm_parts) / magnitude.detach().float()
    return Q, dB_hat, dm, Q.new_empty(0) if dbias_parts is None else _sum(dbias_parts)


def _sum(parts: Tensor) -> Tensor:
    return parts[0] if parts.shape[0] == 1 else parts.sum(0)
