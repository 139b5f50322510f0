"""LoRA: gradients, and the update as a change of the weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lorafam.reference import lora_linear, lora_linear_grad, nf4_linear
from tests.reference.cases import SIZES, arguments, assert_gradcheck, assert_grads_equal_autograd


@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_equal_autograd(sizes: dict[str, Any]) -> None:
    assert_grads_equal_autograd(lora_linear, lora_linear_grad, arguments("lora_linear", **sizes))


def test_gradcheck() -> None:
    assert_gradcheck(lora_linear, arguments("lora_linear"))


def test_equals_the_merged_weight() -> None:
    given = arguments("lora_linear", mask=False)
    merged = given["weight"] + given["scaling"] * given["B"] @ given["A"]
    expected = nf4_linear(given["x"], merged, given["bias"])
    torch.testing.assert_close(lora_linear(**given), expected, rtol=1e-12, atol=1e-12)


def test_the_mask_touches_the_low_rank_path_only() -> None:
    given = arguments("lora_linear")
    given["mask"] = torch.zeros_like(given["mask"])
    torch.testing.assert_close(lora_linear(**given), nf4_linear(given["x"], given["weight"], given["bias"]))
