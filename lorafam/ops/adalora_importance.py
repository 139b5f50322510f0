"""AdaLoRA's importance of every parameter, for all layers at once (arXiv 2303.10512, equations 8-10).

    I = |w · ∇w|     Ī ← β₁ Ī + (1 − β₁) I     U ← β₂ U + (1 − β₂) |I − Ī|     score = Ī · U

`adalora_importance` updates Ī and U in place. `adalora_scores` averages Ī · U over everything but the rank: one score
for each rank of each tensor; `rank_dims` says which dimension (0 for A [r, K] and E [r, 1], 1 for B [N, r]) is the
rank.
"""

from __future__ import annotations

import torch

from .library import accumulate_dtype, define


def _check_same(name: str, tensors: list[torch.Tensor], like: list[torch.Tensor]) -> None:
    if len(tensors) != len(like):
        raise ValueError(f"{name}: expected {len(like)} tensors, got {len(tensors)}")
    for index, (tensor, other) in enumerate(zip(tensors, like, strict=True)):
        if tensor.shape != other.shape:
            raise ValueError(f"{name}[{index}]: expected shape {list(other.shape)}, got {list(tensor.shape)}")


def _check(
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    sensitivity: list[torch.Tensor],
    uncertainty: list[torch.Tensor],
    beta1: float,
    beta2: float,
) -> None:
    _check_same("gradients", gradients, parameters)
    _check_same("sensitivity", sensitivity, parameters)
    _check_same("uncertainty", uncertainty, parameters)
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0.0 < beta < 1.0:
            raise ValueError(f"{name}: expected a factor in (0, 1), got {beta}")


def _fake(
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    sensitivity: list[torch.Tensor],
    uncertainty: list[torch.Tensor],
    beta1: float,
    beta2: float,
) -> None:
    return None


define(
    "adalora_importance",
    "(Tensor[] parameters, Tensor[] gradients, Tensor(a!)[] sensitivity, Tensor(b!)[] uncertainty, "
    "float beta1, float beta2) -> ()",
    check=_check,
    fake=_fake,
)


def _check_scores(sensitivity: list[torch.Tensor], uncertainty: list[torch.Tensor], rank_dims: list[int]) -> None:
    _check_same("uncertainty", uncertainty, sensitivity)
    if len(rank_dims) != len(sensitivity) or any(dim not in (0, 1) for dim in rank_dims):
        raise ValueError(f"rank_dims: expected {len(sensitivity)} values of 0 or 1, got {list(rank_dims)}")
    for index, tensor in enumerate(sensitivity):
        if tensor.ndim != 2:
            raise ValueError(f"sensitivity[{index}]: expected a matrix, got shape {list(tensor.shape)}")


def _fake_scores(
    sensitivity: list[torch.Tensor], uncertainty: list[torch.Tensor], rank_dims: list[int]
) -> list[torch.Tensor]:
    return [
        tensor.new_empty(tensor.shape[dim], dtype=accumulate_dtype(tensor.dtype))
        for tensor, dim in zip(sensitivity, rank_dims, strict=True)
    ]


define(
    "adalora_scores",
    "(Tensor[] sensitivity, Tensor[] uncertainty, int[] rank_dims) -> Tensor[]",
    check=_check_scores,
    fake=_fake_scores,
)
