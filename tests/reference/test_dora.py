"""DoRA: both readings of dropout, gradients with the norm held constant, rows whose magnitude or norm is zero."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from lorafam.reference import dora_linear, dora_linear_grad, lora_linear, nf4_linear, row_norm
from tests.reference.cases import SIZES, arguments, assert_gradcheck, assert_grads_equal_autograd

DROPOUTS = ["adapter", "input"]


def dora_arguments(dora_dropout: str, **sizes: Any) -> dict[str, Any]:
    return {**arguments("dora_linear", **sizes), "dora_dropout": dora_dropout}


def norm_of(given: dict[str, Any]) -> torch.Tensor:
    return row_norm(given["weight"], given["A"], given["B"], given["scaling"])


@pytest.mark.parametrize("dora_dropout", DROPOUTS)
@pytest.mark.parametrize("sizes", SIZES)
def test_gradients_equal_autograd(dora_dropout: str, sizes: dict[str, Any]) -> None:
    assert_grads_equal_autograd(dora_linear, dora_linear_grad, dora_arguments(dora_dropout, **sizes))


@pytest.mark.parametrize("dora_dropout", DROPOUTS)
def test_gradients_at_magnitude_zero(dora_dropout: str) -> None:
    given = dora_arguments(dora_dropout)
    given["magnitude"][[1, 4]] = 0
    assert_grads_equal_autograd(dora_linear, dora_linear_grad, given)
    assert (dora_linear_grad(torch.ones(5, 6).double(), **given).dmagnitude != 0).all()


@pytest.mark.parametrize("dora_dropout", DROPOUTS)
def test_gradcheck_with_the_norm_constant(dora_dropout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dora_arguments(dora_dropout)
    norm = norm_of(given)
    monkeypatch.setattr(importlib.import_module("lorafam.reference.dora"), "row_norm", lambda *arguments: norm)
    assert_gradcheck(dora_linear, given)


@pytest.mark.parametrize("mask", [True, False])
def test_magnitude_gradient_from_the_saved_output(mask: bool) -> None:
    """dm = Σ G ∘ (Y - bias) / m wherever m isn't 0, which is what needs no second product."""
    given = dora_arguments("adapter", mask=mask)
    grad_y = torch.randn(5, 6, generator=torch.Generator().manual_seed(1)).double()
    from_output = (grad_y * (dora_linear(**given) - given["bias"]) / given["magnitude"]).sum(0)
    torch.testing.assert_close(dora_linear_grad(grad_y, **given).dmagnitude, from_output, rtol=1e-12, atol=1e-12)


def test_dropout_of_the_adapter() -> None:
    """Y = c ∘ (x Wᵀ + drop(x) Aᵀ B̂ᵀ) + bias: LoRA's output, scaled."""
    given = dora_arguments("adapter")
    names = ("x", "weight", "A", "B", "scaling", "mask")
    expected = given["magnitude"] / norm_of(given) * lora_linear(**{name: given[name] for name in names})
    torch.testing.assert_close(dora_linear(**given), expected + given["bias"], rtol=1e-12, atol=1e-12)


def test_dropout_of_the_input() -> None:
    """Y = x Wᵀ + bias + (c - 1) ∘ (x_d Wᵀ) + c ∘ (x_d Aᵀ B̂ᵀ), as PEFT orders it."""
    given = dora_arguments("input")
    c = given["magnitude"] / norm_of(given)
    x_d = given["x"] * given["mask"]
    expected = nf4_linear(given["x"], given["weight"], given["bias"])
    expected = expected + (c - 1) * (x_d @ given["weight"].T)
    expected = expected + c * (x_d @ given["A"].T @ (given["scaling"] * given["B"]).T)
    torch.testing.assert_close(dora_linear(**given), expected, rtol=1e-12, atol=1e-12)


def test_without_a_mask_both_dropouts_agree() -> None:
    for forward in (dora_linear, lambda **given: dora_linear_grad(torch.ones(5, 6).double(), **given).dx):
        adapter, both = (forward(**dora_arguments(dora_dropout, mask=False)) for dora_dropout in DROPOUTS)
        torch.testing.assert_close(adapter, both, rtol=1e-12, atol=1e-12)


def test_magnitude_equal_to_the_norm_is_lora() -> None:
    given = arguments("dora_linear")
    lora = lora_linear(**{name: value for name, value in given.items() if name != "magnitude"})
    torch.testing.assert_close(dora_linear(**{**given, "magnitude": norm_of(given)}), lora, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dora_dropout", DROPOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_zero_row_is_finite(dora_dropout: str, dtype: torch.dtype) -> None:
    given = dora_arguments(dora_dropout, dtype=dtype)
    given["weight"][2] = given["B"][2] = given["magnitude"][2] = 0
    y = dora_linear(**given)
    assert torch.equal(y[:, 2], given["bias"][2].expand(5))
    for tensor in (y, *dora_linear_grad(torch.ones_like(y), **given)):
        assert tensor.isfinite().all()


def test_an_unknown_dropout_is_refused() -> None:
    with pytest.raises(ValueError, match='dora_dropout: expected "adapter" or "input", got \'both\''):
        dora_linear(**dora_arguments("both"))
    with pytest.raises(ValueError, match="dora_dropout"):
        dora_linear_grad(torch.ones(5, 6).double(), **dora_arguments("both"))
