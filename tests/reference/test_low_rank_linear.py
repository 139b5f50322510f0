"""The family's formula: written out element by element, and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam.reference import low_rank_linear, low_rank_linear_grad
from tests.reference.cases import SIZES, arguments, autograd_grads


def family_arguments(**sizes: Any) -> dict[str, Any]:
    given = arguments("dora_linear", **sizes)
    del given["scaling"]
    return {"B_hat": given.pop("B"), "c": given.pop("magnitude"), **given}


def test_every_element() -> None:
    g = family_arguments()
    y = low_rank_linear(**g)
    for m in range(5):
        x_d = g["x"][m] * g["mask"][m]
        P = [sum(x_d[k] * g["A"][i, k] for k in range(7)) for i in range(3)]
        for n in range(6):
            product = sum(g["x"][m, k] * g["weight"][n, k] for k in range(7))
            update = sum(P[i] * g["B_hat"][n, i] for i in range(3))
            torch.testing.assert_close(y[m, n], g["c"][n] * (product + update) + g["bias"][n], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("scaled", [True, False])
def test_gradients_equal_autograd(sizes: dict[str, Any], scaled: bool) -> None:
    given = family_arguments(**{**sizes, "bias": True})
    given["c"] = given["c"] if scaled else None
    B_hat, bias = given.pop("B_hat"), given.pop("bias")
    y = low_rank_linear(**given, B_hat=B_hat, bias=bias)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)

    def forward(B: torch.Tensor, bias: torch.Tensor, **others: Any) -> torch.Tensor:
        return low_rank_linear(**others, B_hat=B, bias=bias)

    expected = autograd_grads(forward, {**given, "B": B_hat, "bias": bias}, grad_y)
    ours = low_rank_linear_grad(grad_y=grad_y, **given, B_hat=B_hat)
    for got, name in zip(ours, ("dx", "dA", "dB", "dbias"), strict=True):
        torch.testing.assert_close(got, expected[name], rtol=1e-12, atol=1e-12)
