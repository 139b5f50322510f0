"""The ratio rule passes what is as good as eager, and can fail."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafam.reference.ratio_rule import assert_as_good_as_eager, unit_roundoff

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def product(dtype: torch.dtype, seed: int = 0, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """x Wᵀ [32, 48] summed over 96 terms: in two orders with partial sums in `dtype`, and exactly."""
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(32, 96, generator=generator) + mean).to(dtype)
    weight = (torch.randn(48, 96, generator=generator) + mean).to(dtype)

    def summed(order: Tensor) -> Tensor:
        total = torch.zeros(32, 48, dtype=dtype)
        for k in order.tolist():
            total = total + x[:, k, None] * weight[None, :, k]
        return total

    forwards = torch.arange(96)
    return summed(forwards.flip(0)), summed(forwards), x.double() @ weight.double().T


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 1.0])
def test_two_orders_of_summation_pass(dtype: torch.dtype, mean: float) -> None:
    ours, eager, exact = product(dtype, mean=mean)
    assert not torch.equal(ours, eager)
    assert_as_good_as_eager(ours, eager, exact)
    assert_as_good_as_eager(eager, ours, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_better_result_passes(dtype: torch.dtype) -> None:
    _, eager, exact = product(dtype)
    assert_as_good_as_eager(exact.to(dtype), eager, exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_rounding_passes_where_eager_is_lucky(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(64, 64, dtype=torch.float64, generator=generator).to(dtype).double()
    last_bit = torch.where(torch.rand(64, 64, generator=generator) < 0.01, 2 * unit_roundoff(dtype), 0.0)
    assert_as_good_as_eager(exact.to(dtype), exact.to(dtype), exact)
    with pytest.raises(AssertionError, match="RMS"):
        assert_as_good_as_eager((exact * (1 + last_bit)).to(dtype), exact.to(dtype), exact)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_perturbed_result_fails(dtype: torch.dtype) -> None:
    _, eager, exact = product(dtype)
    noise = torch.randn(eager.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    perturbed = eager.double() + 2 * (eager.double() - exact).square().mean().sqrt() * noise
    with pytest.raises(AssertionError, match=r"dx: error against fp64 on 1536 elements\n  RMS .* ratio 2\.\d+, limit"):
        assert_as_good_as_eager(perturbed.to(dtype), eager, exact, name="dx")


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_wrong_element_fails(dtype: torch.dtype) -> None:
    _, eager, exact = product(dtype)
    wrong = eager.clone()
    wrong[3, 5] += 5 * (eager.double() - exact).abs().max()
    with pytest.raises(AssertionError, match=r"max .* ratio [4-9]"):
        assert_as_good_as_eager(wrong, eager, exact)


def test_a_biased_result_fails() -> None:
    """Partial sums rounded to bf16 by dropping bits, always towards zero, where eager rounds to nearest."""
    terms = torch.randn(32, 48, 96, generator=torch.Generator().manual_seed(0)).abs().bfloat16()
    truncated, eager = torch.zeros(2, 32, 48, dtype=torch.bfloat16)
    for term in terms.unbind(-1):
        eager = eager + term
        wide = truncated.float() + term.float()
        truncated = (wide.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    with pytest.raises(AssertionError, match="RMS"):
        assert_as_good_as_eager(truncated, eager, terms.double().sum(-1))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_value_that_is_not_finite_fails(value: float, where: int) -> None:
    results = [tensor.clone() for tensor in product(torch.float32)]
    for tensor in results[where:]:
        tensor[7, 7] = value
    with pytest.raises(AssertionError, match="1 of 1536 elements are NaN or infinite"):
        assert_as_good_as_eager(*results)


def test_another_shape_dtype_or_number_fails() -> None:
    ours, eager, exact = product(torch.bfloat16)
    with pytest.raises(AssertionError, match=r"expected .*bfloat16, got .*float32"):
        assert_as_good_as_eager(ours.float(), eager, exact)
    with pytest.raises(AssertionError, match=r"expected shape \[32, 48\], got \[48, 32\]"):
        assert_as_good_as_eager(ours.T, eager, exact)
    with pytest.raises(AssertionError, match="expected 1 tensors, got 2"):
        assert_as_good_as_eager([ours, ours], [eager], [exact])
    with pytest.raises(AssertionError, match=r"expected shape \[0, 4\], got \[0, 5\]"):
        assert_as_good_as_eager(torch.empty(0, 5), torch.empty(0, 4), torch.empty(0, 4).double())


def test_few_elements_are_pooled_over_seeds() -> None:
    ours, eager, exact = zip(
        *[[tensor[0] for tensor in product(torch.float32, seed)] for seed in range(22)], strict=True
    )
    assert_as_good_as_eager(ours, eager, exact)
    with pytest.raises(ValueError, match="at least 1024 elements, got 1008; pass lists of at least 22 seeds' tensors"):
        assert_as_good_as_eager(ours[:21], eager[:21], exact[:21])
    with pytest.raises(AssertionError):
        assert_as_good_as_eager((ours[0] * 1.01, *ours[1:]), eager, exact)


def test_empty_tensors_pass_but_not_no_tensors() -> None:
    assert_as_good_as_eager(torch.empty(0, 4), torch.empty(0, 4), torch.empty(0, 4).double())
    with pytest.raises(ValueError, match="at least one tensor"):
        assert_as_good_as_eager([], [], [])


def test_a_yardstick_that_cannot_measure_is_refused() -> None:
    ours, eager, exact = product(torch.float32)
    with pytest.raises(ValueError, match=r"exact must be torch\.float64, got torch\.float32"):
        assert_as_good_as_eager(ours, eager, exact.float())
    with pytest.raises(ValueError, match="eager must be float32"):
        assert_as_good_as_eager(ours.double(), eager.double(), exact)
    with pytest.raises(ValueError, match="eager and exact differ in shape"):
        assert_as_good_as_eager(ours, eager, exact.T)
