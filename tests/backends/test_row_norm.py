"""‖W + B̂A‖ where a row nearly cancels, on every backend: the identity loses those digits, so such rows are redone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafam import functional as F
from lorafam import quantize_nf4, reference
from lorafam.backends import numba_cpu
from tests.conftest import device
from tests.tolerances import assert_as_good_as_eager

N, K, RANK = 70, 192, 20


@pytest.mark.parametrize("storage", ["dense", "nf4"])
def test_nearly_cancelling_rows(storage: str, backend: str) -> None:
    """Every third row of W + B̂A is 1e-4 of W's; its norm keeps four digits."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randn(RANK, K, generator=generator)
    B = torch.randn(N, RANK, generator=generator) * 0.1
    dense = torch.randn(N, K, generator=generator) * 0.3
    if storage == "nf4":
        weight = quantize_nf4(dense.to(device()))
        dense = weight.dequantize(torch.float32).cpu()
    # one rank for each of these rows, which is that row negated
    near = torch.arange(0, N, 3)[:RANK]
    noise = 1e-4 * dense.norm(dim=1, keepdim=True) * torch.randn(N, K, generator=generator) / K**0.5
    A[: len(near)] = noise[near] - dense[near]
    B[near] = 0.0
    B[near, torch.arange(len(near))] = 1.0
    given = weight if storage == "nf4" else dense.to(device())
    norm = F.row_norm(given, A.to(device()), B.to(device()), 1.0).cpu()
    exact = reference.row_norm(dense.double(), A.double(), B.double(), 1.0)
    ratio = exact[near] / dense[near].double().norm(dim=1)
    assert ratio.max() < 3e-4
    torch.testing.assert_close(norm.double(), exact, rtol=1e-4, atol=0)


def peft_norm(dense: torch.Tensor, A: torch.Tensor, B: torch.Tensor, scaling: float) -> torch.Tensor:
    return torch.linalg.norm(dense + scaling * (B @ A), dim=1)


@pytest.mark.parametrize("storage", ["dense", "nf4"])
@pytest.mark.parametrize("lost", ["the row", "the ranks"])
@pytest.mark.parametrize("level", [1e-4, 0.1, 0.6])
def test_every_level_of_cancellation(level: float, lost: str, storage: str, backend: str) -> None:
    """An update that takes a row away but for `level` of it; ranks that take one another away."""
    rows, ranks = 64, 64 if lost == "the row" else 8
    ours, eager, exact = [], [], []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        dense = torch.randn(rows, K, generator=generator) * (0.3 if lost == "the row" else 0.05)
        weight = quantize_nf4(dense.to(device())) if storage == "nf4" else dense.to(device())
        dense = weight.dequantize(torch.float32).cpu() if storage == "nf4" else dense
        noise = torch.randn(ranks, K, generator=generator)
        if lost == "the row":
            A, B = level * 0.3 * noise - dense, torch.eye(rows)
        else:
            B = torch.randn(rows, ranks, generator=generator)
            A, B = torch.randn(1, K, generator=generator) + level * noise, B - B.mean(1, keepdim=True)
        ours.append(F.row_norm(weight, A.to(device()) / 2, B.to(device()), 2.0).cpu())
        eager.append(peft_norm(dense, A / 2, B, 2.0))
        exact.append(peft_norm(dense.double(), A.double() / 2, B.double(), 2.0))
    assert_as_good_as_eager(ours, eager, exact, name=f"{level} of {lost}", least=2 * rows)


class Largest(TorchDispatchMode):
    """The largest tensor that is made inside."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


@pytest.mark.parametrize("storage", ["dense", "nf4"])
def test_more_ranks_than_columns(storage: str, backend: str) -> None:
    """No [r, r] is formed."""
    rows, ranks = 96, 5 * K
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(rows, K, generator=generator)
    weight = quantize_nf4(dense.to(device())) if storage == "nf4" else dense.to(device())
    dense = weight.dequantize(torch.float32).cpu() if storage == "nf4" else dense
    A, B = torch.randn(ranks, K, generator=generator), torch.randn(rows, ranks, generator=generator)
    norm = F.row_norm(weight, A.to(device()), B.to(device()), 0.1).cpu()
    eager, exact = peft_norm(dense, A, B, 0.1), peft_norm(dense.double(), A.double(), B.double(), 0.1)
    assert_as_good_as_eager([norm], [eager], [exact], name="more ranks than columns", least=rows)
    if backend == "numba":
        data, scales, layout = weight.storage() if storage == "nf4" else (dense, [], [])
        with Largest() as seen:
            numba_cpu.row_norm(data, scales, layout, A, B, None)
        assert seen.elements < ranks**2
