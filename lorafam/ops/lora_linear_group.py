"""Y_i = x W_iᵀ + P_i B̂_iᵀ + bias_i for several weights and one x: x [M, K], W_i [N_i, K], P_i [M, r_i], B̂_i [N_i, r_i],
bias_i [N_i] → Y_i [M, N_i].

The weights are all dense or all 4-bit; their flattened arguments stand one after the other. Each Y_i is that of
`lora_linear`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .by_storage import Storage, group_storages
from .library import OPS, define

Tensor = torch.Tensor


class Member(NamedTuple):
    """A weight of a group, P [M, r], B̂ [N, r] and bias [N]."""

    weight: Storage
    P: Tensor
    B_hat: Tensor
    bias: Tensor | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of `lora_linear` after x."""
        return (*self.weight, self.P, self.B_hat, None, self.bias)


def members(
    data: list[Tensor],
    scales: list[Tensor],
    layout: list[int],
    P: list[Tensor],
    B_hat: list[Tensor],
    bias: list[Tensor | None],
) -> list[Member]:
    """The group's, from the op's arguments after x."""
    return [Member(*own) for own in zip(group_storages(data, scales, layout), P, B_hat, bias, strict=True)]


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
        OPS["lora_linear"].check(x, *member.arguments)


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
    return [x.new_empty((x.shape[0], storage.shape[0])) for storage in storages]


define(
    "lora_linear_group",
    "(Tensor x, Tensor[] data, Tensor[] scales, int[] layout, Tensor[] P, Tensor[] B_hat, Tensor?[] bias) -> Tensor[]",
    check=_check,
    fake=_fake,
)
