"""Tokens that choose their adapter, or their expert: as each token alone, in fp64 and by the ratio rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam import functional as F
from lorafam import quantize_nf4
from tests.conftest import INTERPRETING, device
from tests.tolerances import assert_as_good_as_eager

Tensor = torch.Tensor
K, N, RANKS, SCALINGS = 64, 80, (4, 2, 9), (2.0, 0.5, 1.0)
E, R = 5, 6


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return (torch.randn(shape, generator=generator) * scale).to(device())


def adapters() -> dict[str, Any]:
    return {
        "As": [random(rank, K, scale=0.1) for rank in RANKS],
        "Bs": [random(N, rank, scale=0.3) for rank in RANKS],
        "scalings": list(SCALINGS),
    }


def token_by_token(x: Tensor, weight: Tensor, given: dict[str, Any], rows: Tensor, bias: Tensor, dtype: Any) -> Tensor:
    """PEFT's order of operations, a token at a time; its own loop is over adapters."""
    ys = []
    for token, row in zip(x.to(dtype), rows.tolist(), strict=True):
        y = torch.nn.functional.linear(token, weight.to(dtype), bias.to(dtype))
        if row >= 0:
            A, B, s = (given[name][row] for name in ("As", "Bs", "scalings"))
            wide = torch.promote_types(dtype, torch.float32)
            y = (y + s * (token.to(wide) @ A.to(wide).T @ B.to(wide).T)).to(dtype)
        ys.append(y)
    return torch.stack(ys)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("storage", ["dense", "nf4"])
@pytest.mark.parametrize("tokens", [3, 40])
def test_rows_choose_their_adapter(tokens: int, storage: str, dtype: torch.dtype, backend: str) -> None:
    if (INTERPRETING or backend == "simulate") and (dtype == torch.bfloat16 or tokens == 3):
        pytest.skip("products that tests/test_functional.py runs there")
    weight: Any = random(N, K, scale=0.2).to(dtype)
    dense = weight
    if storage == "nf4":
        weight = quantize_nf4(weight)
        dense = weight.dequantize(dtype)
    given, bias = adapters(), random(N).to(dtype)
    ours, eager, exact = [], [], []
    for seed in range(6 if tokens == 3 else 1):
        x = random(tokens, K, seed=seed).to(dtype)
        rows = torch.arange(tokens, device=device()) % 4 - 1
        ours.append(F.grouped_lora_linear(x, weight, **given, biases=bias, rows=rows))
        eager.append(token_by_token(x, dense, given, rows, bias, dtype))
        exact.append(token_by_token(x, dense, given, rows, bias, torch.float64))
    assert_as_good_as_eager(ours, eager, exact)


def gradients(run: Any, leaves: list[Tensor]) -> list[Tensor]:
    y = run()
    return list(torch.autograd.grad((y * random(*y.shape, seed=9).to(y.dtype)).sum(), leaves))


@pytest.mark.parametrize("backend", [] if INTERPRETING else ["numba", "eager"], indirect=True)
def test_gradients_of_rows(backend: str) -> None:
    given, weight = adapters(), random(N, K, scale=0.2)
    given["scalings"][1] = random(RANKS[1]).abs()
    x, bias = random(40, K), random(N)
    rows = torch.arange(40, device=device()) % 4 - 1
    leaves = [x, bias, *given["As"], *given["Bs"], given["scalings"][1]]
    for leaf in leaves:
        leaf.requires_grad_()

    def by_hand() -> Tensor:
        y = torch.nn.functional.linear(x, weight, bias)
        for index, (A, B, s) in enumerate(zip(given["As"], given["Bs"], given["scalings"], strict=True)):
            y = y + (rows == index).unsqueeze(1) * (x @ A.T @ (B * s).T)
        return y

    found = gradients(lambda: F.grouped_lora_linear(x, weight, **given, biases=bias, rows=rows), leaves)
    torch.testing.assert_close(found, gradients(by_hand, leaves), rtol=1e-4, atol=1e-4)


def test_a_row_of_a_batch_is_all_of_its_tokens(backend: str) -> None:
    given, weight, x = adapters(), random(N, K), random(3, 5, K)
    rows = torch.tensor([1, -1, 0], device=device())
    y = F.grouped_lora_linear(x, weight, **given, rows=rows)
    each = F.grouped_lora_linear(x, weight, **given, rows=rows.unsqueeze(1).expand(3, 5))
    assert torch.equal(y, each)
    torch.testing.assert_close(y[1], F.nf4_linear(x[1], weight), rtol=1e-5, atol=1e-5)


def experts(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    return {
        "weights": random(E, N, K, scale=0.2).to(dtype),
        "As": random(E, R, K, scale=0.1),
        "Bs": random(E, N, R, scale=0.3),
        "scalings": [1.0, 2.0, 0.5, 1.0, 0.0],
    }


def expert_by_expert(x: Tensor, given: dict[str, Any], rows: Tensor) -> Tensor:
    W, A, B = given["weights"].to(x.dtype), given["As"], given["Bs"]
    wide = torch.promote_types(x.dtype, torch.float32)
    s = torch.tensor(given["scalings"], dtype=wide)[rows].unsqueeze(1)
    y = torch.einsum("tk,tnk->tn", x, W[rows])
    P = torch.einsum("tk,trk->tr", x.to(wide), A.to(wide)[rows])
    return (y + s * torch.einsum("tr,tnr->tn", P, B.to(wide)[rows])).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_choose_their_expert(dtype: torch.dtype) -> None:
    """One expert gets no token, one has a scaling of 0."""
    given, x = experts(dtype), random(3, 20, K).to(dtype)
    rows = torch.tensor([0, 1, 3, 4], device=device())[torch.arange(60) % 4].view(3, 20)
    flat = rows.flatten()
    exact = {**given, "weights": given["weights"].double()}
    assert_as_good_as_eager(
        F.grouped_lora_linear(x, **given, rows=rows).flatten(0, 1),
        expert_by_expert(x.flatten(0, 1), given, flat),
        expert_by_expert(x.flatten(0, 1).double(), exact, flat),
    )


def test_gradients_of_experts() -> None:
    given, x = experts(), random(60, K)
    rows = torch.tensor([0, 1, 3, 4], device=device())[torch.arange(60) % 4]
    leaves = [x, given["As"], given["Bs"]]
    for leaf in leaves:
        leaf.requires_grad_()
    found = gradients(lambda: F.grouped_lora_linear(x, **given, rows=rows), leaves)
    torch.testing.assert_close(found, gradients(lambda: expert_by_expert(x, given, rows), leaves), rtol=1e-4, atol=1e-4)
    assert found[1][2].eq(0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.zeros(4)}, "rows: expected int64"),
        ({"rows": torch.zeros(3, dtype=torch.int64)}, "rows: expected int64 of the first dimensions"),
        ({"As": []}, "As, Bs, scalings: expected as many of each"),
        ({"Bs": [torch.zeros(N, 4)] * 3}, r"B: expected \[80, 2\]"),
    ],
)
def test_what_rows_refuse(change: dict[str, Any], message: str) -> None:
    given = {"x": torch.zeros(4, K), "weights": torch.zeros(N, K), **adapters()}
    given["rows"] = torch.zeros(4, dtype=torch.int64)
    with pytest.raises(ValueError, match=message):
        F.grouped_lora_linear(**{**given, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"As": torch.zeros(E, R, 3)}, r"As: expected \[5, r, 64\]"),
        ({"Bs": torch.zeros(E, N, R + 1)}, r"Bs: expected \[5, 80, 6\]"),
        ({"scalings": [1.0]}, "scalings: expected one for each of 5 experts"),
        ({"x": torch.zeros(4, 3)}, "x: expected"),
    ],
)
def test_what_experts_refuse(change: dict[str, Any], message: str) -> None:
    given = {"x": torch.zeros(4, K), **experts(), "rows": torch.zeros(4, dtype=torch.int64)}
    with pytest.raises(ValueError, match=message):
        F.grouped_lora_linear(**{**given, **change})
