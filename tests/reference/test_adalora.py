"""AdaLoRA: gradients, pruned ranks, rank 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam.reference import adalora_linear, adalora_linear_grad, nf4_linear
from tests.reference.cases import SIZES, arguments, assert_gradcheck, assert_grads_equal_autograd


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_equal_autograd(sizes: dict[str, Any]) -> None:
    assert_grads_equal_autograd(adalora_linear, adalora_linear_grad, arguments("adalora_linear", **sizes))


def test_gradcheck() -> None:
    assert_gradcheck(adalora_linear, arguments("adalora_linear"))


def test_a_pruned_rank_is_as_if_removed_but_may_come_back() -> None:
    given = arguments("adalora_linear")
    given["E"][1] = 0
    left = torch.tensor([0, 2])
    removed = {**given, "A": given["A"][left], "E": given["E"][left], "B": given["B"][:, left]}
    torch.testing.assert_close(adalora_linear(**given), adalora_linear(**removed), rtol=1e-12, atol=1e-12)
    grads = adalora_linear_grad(torch.ones(5, 6).double(), **given)
    assert (grads.dA[1] == 0).all()
    assert (grads.dB[:, 1] == 0).all()
    assert grads.dE[1] != 0


def test_rank_0_adds_nothing() -> None:
    given = arguments("adalora_linear", rank=0)
    assert torch.equal(adalora_linear(**given), nf4_linear(given["x"], given["weight"], given["bias"]))
