"""Every op's schema, fake tensor and mutation declaration, by torch's own opcheck, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.ops.by_storage import Storage, dense_storage
from lorafam.ops.library import OPS
from lorafam.ops.samples import OPTIONAL, Sample
from lorafam.weights.dynamic_levels import dynamic_levels
from tests.conftest import device

TOKENS, K, N, RANK = 5, 96, 10, 3


class Small:
    """Tensors of a few values, the same in every run."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.seed = torch.tensor(3, device=device())

    def random(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator).to(device(), dtype)

    def levels(self) -> torch.Tensor:
        return dynamic_levels(torch.device(device()))

    def factors(self) -> tuple[list[torch.Tensor], list[int]]:
        return [self.random(RANK, K), self.random(RANK, 1), self.random(N, RANK)], [0, 0, 1]

    def penalties(self, factors: list[torch.Tensor], rank_dims: list[int]) -> tuple[torch.Tensor, ...]:
        return self.random(len(factors)) + 5, self.random(len(factors) * RANK * RANK)


STORAGES = {
    "dense": lambda: dense_storage(Small().random(N, K)),
    "nf4": lambda: quantize_nf4(Small().random(N, K), 32, False).storage(),
    "nf4-double": lambda: quantize_nf4(Small().random(N, K), 64, True).storage(),
}


def arguments(op: str, storage: Storage) -> list[tuple[Any, ...]]:
    """Calls of an op with and without its optional arguments; none where it isn't over such a weight."""
    small = Small()
    if op == "dequantize_4bit":
        return [(*storage, dtype) for dtype in (torch.float32, torch.bfloat16)] if storage.layout else []
    calls = [Sample(small, storage, torch.float32, TOKENS, RANK, given).arguments(op) for given in (OPTIONAL, ())]
    if op == "lora_linear_group":
        calls = [Sample(small, storage, torch.float32, TOKENS, RANK, biased=(False, True)).arguments(op)]
    if op == "quantize_4bit":
        calls.append((small.random(N, K).bfloat16(), 128, "fp4"))
    if op == "quantize_absmax":
        calls.append((small.random(700).abs(), small.levels()))
    return calls


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("op", sorted(OPS))
def test_opcheck(op: str, storage: str, backend: str) -> None:
    for call in arguments(op, STORAGES[storage]()):
        torch.library.opcheck(getattr(torch.ops.lorafam, op).default, call)


def test_every_op_is_checked() -> None:
    for op in OPS:
        assert arguments(op, STORAGES["nf4"]())
