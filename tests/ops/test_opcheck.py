"""Every op's schema, fake tensor and mutation declaration, by torch's own opcheck, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.ops.library import OPS
from lorafam.weights.dynamic_levels import dynamic_levels
from tests.conftest import device

M, K, N, RANK = 5, 96, 10, 3


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(device())


STORAGES = {
    "dense": lambda: (random(N, K), [], []),
    "nf4": lambda: tuple(quantize_nf4(random(N, K), 32, False).storage()),
    "nf4-double": lambda: tuple(quantize_nf4(random(N, K), 64, True).storage()),
}


def arguments(op: str, storage: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Calls of an op that cover its optional arguments."""
    x, P, B_hat, A, G = random(M, K), random(M, RANK), random(N, RANK), random(RANK, K), random(M, N)
    Q, c, bias, seed = random(M, RANK) + 1, random(N), random(N), torch.tensor(3, device=device())
    factors, target = [random(RANK, K), random(RANK, 1), random(N, RANK)], torch.arange(M, device=device()) % RANK

    def zeros() -> list[torch.Tensor]:
        return [torch.zeros_like(factor) for factor in factors]

    return {
        "adalora_importance": [(factors, factors, zeros(), zeros(), 0.85, 0.85)],
        "adalora_scores": [(factors, factors, [0, 0, 1])],
        "adalora_penalty": [(factors, [0, 0, 1])],
        "adalora_penalty_grad": [(factors, [0, 0, 1], random(3) + 5, random(3 * RANK * RANK), random(3))],
        "dequantize_4bit": [(*storage, dtype) for dtype in (torch.float32, torch.bfloat16)] if storage[2] else [],
        "dropout": [(x, seed, 0.3)],
        "linear_cross_entropy": [(x, A, None, target, False), (x, A, random(RANK), target, True)],
        "lora_factors_grad": [
            (G, x, P, B_hat, None, None, None, None, None, 0.0, False),
            (G, x, P, B_hat, c, G + 1, bias, c + 5, seed, 0.3, True),
        ],
        "lora_linear": [(x, *storage, None, None, None, None), (x, *storage, P, B_hat, c, bias)],
        "lora_linear_grad": [
            (G, *storage, None, None, None, None, 0.0),
            (G, *storage, c, Q, A, seed, 0.3),
        ],
        "lora_linear_group": [
            (x, [storage[0]] * 2, [*storage[1]] * 2, [*storage[2]] * 2, [P, P + 1], [B_hat, B_hat + 1], [None, bias])
        ],
        "lora_project": [(x, A, None, 0.0), (x, A, seed, 0.3)],
        "quantize_4bit": [(random(N, K), 64, "nf4"), (random(N, K).bfloat16(), 128, "fp4")],
        "quantize_absmax": [(random(700).abs(), dynamic_levels(torch.device(device())))],
        "row_norm": [(*storage, A, B_hat, None), (*storage, A, B_hat, random(N).square())],
        "squared_row_norm": [storage],
    }[op]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("op", sorted(OPS))
def test_opcheck(op: str, storage: str, backend: str) -> None:
    for call in arguments(op, STORAGES[storage]()):
        torch.library.opcheck(getattr(torch.ops.lorafam, op).default, call)


def test_every_op_is_checked() -> None:
    for op in OPS:
        assert arguments(op, STORAGES["nf4"]())
