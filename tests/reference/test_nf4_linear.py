"""The base's product and its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam.reference import nf4_linear, nf4_linear_grad
from tests.reference.cases import SIZES, arguments, assert_gradcheck, assert_grads_equal_autograd


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_equal_autograd(sizes: dict[str, Any]) -> None:
    assert_grads_equal_autograd(nf4_linear, nf4_linear_grad, arguments("nf4_linear", **sizes))


@pytest.mark.parametrize("sizes", SIZES)
def test_equals_torch(sizes: dict[str, Any]) -> None:
    given = arguments("nf4_linear", **sizes)
    expected = torch.nn.functional.linear(given["x"], given["weight"], given["bias"])
    torch.testing.assert_close(nf4_linear(**given), expected, rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    assert_gradcheck(nf4_linear, arguments("nf4_linear"))
