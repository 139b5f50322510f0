"""Products by either library: right, no less exact than torch.mm, for any strides and sizes."""

from __future__ import annotations

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.backends.numba_cpu import product as module
from lorafam.backends.numba_cpu.lora_linear import lora_linear
from lorafam.backends.numba_cpu.product import TERMS, add_product, product, sum_of_products
from tests.tolerances import assert_as_good_as_eager

SHAPES = [(129, 2048, 64), (64, 640, 128), (16, 300, 80), (1, 512, 1024), (40, 8, 100), (128, 257, 33)]


@pytest.fixture(autouse=True, params=[True, False], ids=["oneDNN", "MKL"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    monkeypatch.setattr(module, "uses_onednn", lambda: request.param)


@pytest.mark.parametrize("strides", ["plain", "transposed a", "transposed b", "part of a"])
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_as_exact_as_torch(M: int, K: int, N: int, strides: str) -> None:
    generator = torch.Generator().manual_seed(M + K + N)
    a, b = torch.randn(M, K, generator=generator) + 1, torch.randn(K, N, generator=generator)
    if strides == "transposed a":
        a = a.T.contiguous().T
    elif strides == "transposed b":
        b = b.T.contiguous().T
    elif strides == "part of a":
        a = torch.cat([a, a], 1)[:, :K]
    exact = a.double() @ b.double()
    assert_as_good_as_eager(product(a, b), a @ b, exact)
    out = torch.randn(M, N, generator=generator)
    start = out.clone()
    assert_as_good_as_eager(add_product(out, a, b), start + a @ b, start.double() + exact)


@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_sum_of_products_as_exact_as_torch(M: int, K: int, N: int) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    generator = torch.Generator().manual_seed(M + K + N)
    a, b = torch.randn(M, K, generator=generator) + 1, torch.randn(N, K, generator=generator)
    factors = [(part, plane.contiguous()) for part, plane in zip(a.split(TERMS, 1), b.split(TERMS, 1), strict=True)]
    assert_as_good_as_eager(sum_of_products(factors), a @ b.T, a.double() @ b.double().T)


@pytest.mark.parametrize(("M", "K", "N"), [(0, 5, 7), (20, 0, 4), (20, 5, 0)])
def test_empty(M: int, K: int, N: int) -> None:
    assert torch.equal(product(torch.ones(M, K), torch.ones(K, N)), torch.zeros(M, N))


@pytest.mark.parametrize("tokens", [3, 70])
def test_rank_zero(tokens: int) -> None:
    """What AdaLoRA leaves of a layer that it pruned whole."""
    weight, x = quantize_nf4(torch.randn(40, 64)), torch.randn(tokens, 64)
    y = torch.ops.lorafam.lora_linear(x, *weight.storage(), torch.empty(tokens, 0), torch.empty(40, 0), None, None)
    torch.testing.assert_close(y, torch.ops.lorafam.lora_linear(x, *weight.storage(), None, None, None, None))


def test_fp64() -> None:
    a, b = torch.randn(20, 300, dtype=torch.float64), torch.randn(300, 9, dtype=torch.float64)
    torch.testing.assert_close(product(a, b), a @ b)


def test_a_fresh_adapter_changes_no_bit() -> None:
    # more tokens than dense_few_tokens takes
    x, weight, bias = torch.randn(40, 1000), torch.randn(200, 1000), torch.randn(200)
    P, B_hat = torch.randn(40, 4), torch.zeros(200, 4)
    y = lora_linear(x, weight, [], [], P, B_hat, None, bias)
    assert torch.equal(y, torch.nn.functional.linear(x, weight, bias))
