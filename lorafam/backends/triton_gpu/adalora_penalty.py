"""AdaLoRA's distances from orthogonality and their gradients, one launch for the factors of all layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...kernels.adalora_penalty import adalora_penalty as kernel
from ...kernels.adalora_penalty_grad import adalora_penalty_grad as grad_kernel
from ...kernels.launch_table import launch_config
from .adalora import laid_out, taken_apart
from .launch import architecture, launch

Tensor = torch.Tensor
Segment = tuple[int, int, int, int, int, int]


@torch.no_grad()
def adalora_penalty(factors: list[Tensor], rank_dims: list[int]) -> tuple[Tensor, Tensor]:
    flat = laid_out(factors)
    segments = _segments(factors, rank_dims)
    distances = flat.new_empty(len(factors))
    deviations = flat.new_empty(sum(segment[3] ** 2 for segment in segments))
    launch(
        flat.device,
        ("deviations_ptr", "distances_ptr"),
        kernel,
        factors=flat,
        segments=_table(segments, flat.device),
        deviations=deviations,
        distances=distances,
        T=len(factors),
        config=launch_config("adalora_penalty", architecture(flat.device), "float32"),
    )
    return distances, deviations


@torch.no_grad()
def adalora_penalty_grad(
    factors: list[Tensor], rank_dims: list[int], distances: Tensor, deviations: Tensor, grad_distances: Tensor
) -> list[Tensor]:
    flat = laid_out(factors)
    grads = torch.empty_like(flat)
    config = launch_config("adalora_penalty_grad", architecture(flat.device), "float32")
    segments = _segments(factors, rank_dims)
    block = config["BLOCK_L"]
    tiles = [(at, first) for at, segment in enumerate(segments) for first in range(0, segment[4], block) if segment[3]]
    if tiles:
        launch(
            flat.device,
            ("grads_ptr",),
            grad_kernel,
            factors=flat,
            segments=_table(segments, flat.device),
            tiles=_table(tiles, flat.device),
            deviations=deviations,
            distances=distances,
            grad_distances=grad_distances.float().contiguous(),
            grads=grads,
            X=len(tiles),
            config=config,
        )
    return [grad.clone() for grad in taken_apart(grads, factors)]


def _segments(factors: list[Tensor], rank_dims: list[int]) -> list[Segment]:
    """(first element, stride along the rank, along the length, rank, length, first of S) of each factor."""
    segments: list[Segment] = []
    first = deviation = 0
    for factor, dim in zip(factors, rank_dims, strict=True):
        rank, length = factor.shape[dim], factor.shape[1 - dim]
        strides = (1, rank) if dim else (length, 1)
        segments.append((first, *strides, rank, length, deviation))
        first += factor.numel()
        deviation += rank * rank
    return segments


def _table(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device)
