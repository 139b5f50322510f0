"""Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i for several weights and one x: x [M, K], W_i [N_i, K], P_i [M, r_i], B̂_i [N_i, r_i],
bias_i [N_i] → Y_i [M, N_i].

The weights are all dense or all 4-bit; their flattened arguments stand one after the other. Each Y_i is that of
`lora_linear`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .by_storage import group_storages, weight_shape
from .library import OPS, define

Tensor = torch.Tensor


def members(
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> Iterator[tuple[Tensor, list[Tensor], list[int], Tensor, Tensor, None, Tensor | None]]:
    """The arguments of each `lora_linear` after x."""
    storages = group_storages(data, scales, layout)
    for storage, p, b_hat, own in zip(storages, P, B_hat, bias, strict=True):
        yield (*storage, p, b_hat, None, own)


def _check(
    x: Tensor,
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> None:
    if not len(data) == len(P) == len(B_hat) == len(bias):
        counts = [len(data), len(P), len(B_hat), len(bias)]
        raise ValueError(f"weights, P, B_hat, bias: expected one for each weight, got {counts}")
    for member in members(data, scales, layout, P, B_hat, bias):
        OPS["lora_linear"].check(x, *member)


def _fake(
    x: Tensor,
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> list[Tensor]:
    storages = group_storages(data, scales, layout)
    return [x.new_empty((x.shape[0], weight_shape(storage.data, storage.layout)[0])) for storage in storages]


define(
    "lora_linear_group",
    "(Tensor x, Tensor[] data, Tensor[] scales, int[] layout, Tensor[] P, Tensor[] B_hat, Tensor?[] bias) -> Tensor[]",
    check=_check,
    fake=_fake,
)
