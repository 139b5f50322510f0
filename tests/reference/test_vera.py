"""VeRA: gradients, and PEFT's order of multiplications gives the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam.reference import nf4_linear, vera_linear, vera_linear_grad
from tests.reference.cases import SIZES, arguments, assert_gradcheck, assert_grads_equal_autograd


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_equal_autograd(sizes: dict[str, Any]) -> None:
    assert_grads_equal_autograd(vera_linear, vera_linear_grad, arguments("vera_linear", **sizes))


def test_gradcheck() -> None:
    assert_gradcheck(vera_linear, arguments("vera_linear"))


def test_by_activations() -> None:
    """As the paper has it: nothing of B̂'s size is formed."""
    given = arguments("vera_linear", mask=False)
    x, A, B, d, b = (given[name] for name in ("x", "A", "B", "d", "b"))
    expected = nf4_linear(x, given["weight"], given["bias"]) + b * ((d * (x @ A.T)) @ B.T)
    torch.testing.assert_close(vera_linear(**given), expected, rtol=1e-12, atol=1e-12)
