"""AdaLoRA's importance and its mean per rank, one launch for all tensors: they go through the kernels end to end.

Adapter tensors are small, so laying them end to end costs less than a launch for each would.
"""

from __future__ import annotations

import torch

from ...compat.torch import foreach_copy_
from ...kernels.adalora_importance import adalora_importance as importance_kernel
from ...kernels.adalora_scores import adalora_scores as scores_kernel
from ...kernels.launch_table import launch_config
from .launch import architecture, launch

Tensor = torch.Tensor


@torch.no_grad()
def adalora_importance(
    parameters: list[Tensor],
    gradients: list[Tensor],
    sensitivity: list[Tensor],
    uncertainty: list[Tensor],
    beta1: float,
    beta2: float,
) -> None:
    if not parameters:
        return
    smoothed, spread = laid_out(sensitivity), laid_out(uncertainty)
    if smoothed.numel():
        launch(
            smoothed.device,
            (),
            importance_kernel,
            w=laid_out(parameters),
            grad=laid_out(gradients),
            sensitivity=smoothed,
            uncertainty=spread,
            count=smoothed.numel(),
            beta1=beta1,
            beta2=beta2,
            config=launch_config("adalora_importance", architecture(smoothed.device), "float32"),
        )
    foreach_copy_(sensitivity, taken_apart(smoothed, sensitivity))
    foreach_copy_(uncertainty, taken_apart(spread, uncertainty))


@torch.no_grad()
def adalora_scores(sensitivity: list[Tensor], uncertainty: list[Tensor], rank_dims: list[int]) -> list[Tensor]:
    if not sensitivity:
        return []
    smoothed, spread = laid_out(sensitivity), laid_out(uncertainty)
    segments, sizes, start = [], [], 0
    for tensor, dim in zip(sensitivity, rank_dims, strict=True):
        rows, columns = tensor.shape
        step, stride, count = (columns, 1, columns) if dim == 0 else (1, columns, rows)
        sizes.append(tensor.shape[dim])
        segments += [(start + rank * step, stride, count) for rank in range(tensor.shape[dim])]
        start += tensor.numel()
    scores = smoothed.new_empty(len(segments))
    if segments:
        launch(
            smoothed.device,
            ("scores_ptr",),
            scores_kernel,
            sensitivity=smoothed,
            uncertainty=spread,
            segments=torch.tensor(segments, dtype=torch.int64, device=smoothed.device),
            scores=scores,
            S=len(segments),
            config=launch_config("adalora_scores", architecture(smoothed.device), "float32"),
        )
    # an op's results may not share memory
    return [score.clone() for score in scores.split(sizes)]


def laid_out(tensors: list[Tensor]) -> Tensor:
    """fp32 values of all tensors, end to end."""
    return torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])


def taken_apart(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    """Views of `flat` in the shapes of `like`."""
    parts = flat.split([tensor.numel() for tensor in like])
    return [part.view(tensor.shape) for part, tensor in zip(parts, like, strict=True)]
