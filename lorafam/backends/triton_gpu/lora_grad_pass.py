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

# of tiles' parts at a time
MOST_BYTES = 64 << 20


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
    Q = P.new_empty((grad_y.shape[0], B_hat.shape[1]), dtype=torch.float32)
    operands = factor(P), factor(B_hat), c, y if magnitude is not None else None, vector(bias)
    height = _most_tiles(*B_hat.shape) * config["BLOCK_M"]
    sums = _sums(grad_y, *operands, Q, slice(0, height), needs_bias, config)
    for first in range(height, grad_y.shape[0], height):
        found = _sums(grad_y, *operands, Q, slice(first, first + height), needs_bias, config)
        for total, one in zip(sums, found, strict=True):
            total += one
    dB_hat, dm, dbias = sums
    if c is not None:
        dB_hat *= c.float()[:, None]
    if magnitude is not None:
        dm /= magnitude.detach().float()
    return Q, dB_hat, dm, dbias


def _most_tiles(out_features: int, rank: int) -> int:
    """How many tiles' parts are in memory at once."""
    return max(1, MOST_BYTES // (4 * max(1, out_features) * (rank + 2)))


def _sums(
    grad_y: Tensor,
    P: Tensor | None,
    B_hat: Tensor | None,
    c: Tensor | None,
    y: Tensor | None,
    bias: Tensor | None,
    Q: Tensor,
    tokens: slice,
    needs_bias: bool,
    config: LaunchConfig,
) -> list[Tensor]:
    """Gᵀ P, Σ G ∘ (Y − bias) and Σ G over these tokens, [0] where not asked for; their rows of Q are written."""
    grad_y, Q = grad_y[tokens], Q[tokens]
    (count, out_features), rank = grad_y.shape, Q.shape[1]
    tiles = -(-count // config["BLOCK_M"])
    # one tile's part is the result
    each = (tiles,) if tiles > 1 else ()
    parts = Q.new_empty((*each, out_features, rank))
    y_parts = None if y is None else Q.new_empty((*each, out_features))
    bias_parts = Q.new_empty((*each, out_features)) if needs_bias else None
    if Q.numel() and out_features:
        size = config["BLOCK_M"] * config["BLOCK_R"]
        launch(
            grad_y.device,
            ("q_ptr", "b_parts_ptr", "dm_parts_ptr", "dbias_parts_ptr"),
            kernel,
            grad_y=grad_y,
            p=None if P is None else P[tokens],
            b_hat=B_hat,
            c=c,
            saved_y=None if y is None else y[tokens],
            bias=bias if y is not None else None,
            q=Q,
            b_parts=parts,
            dm_parts=y_parts,
            dbias_parts=bias_parts,
            **split_in(grad_y.device, range_=out_features, turn=config["BLOCK_N"], tiles=tiles, size=size),
            M=count,
            N=out_features,
            R=rank,
            config=config,
        )
    every = [Q.new_empty(0) if one is None else one for one in (parts, y_parts, bias_parts)]
    return [one.sum(0) if each and one.ndim > 1 else one for one in every]
