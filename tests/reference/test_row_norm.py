"""The norm directly and by the identity, where the identity is easy, hard and hopeless."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lorafam.reference import NORM_FLOOR, row_norm, row_norm_factored

BOTH = [row_norm, row_norm_factored]
SCALING = 0.5


def factors(out_features: int = 12, rank: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((out_features, 40), (rank, 40), (out_features, rank))
    weight, A, B = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return weight, A, B


def nearly_cancelling(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Row j of W + s·BA is what is left of a row 10ʲ times as long."""
    weight, A, B = factors(dtype=torch.float64)
    left = weight * 10.0 ** -torch.arange(12.0).unsqueeze(1)
    return (left - SCALING * B @ A).to(dtype), A.to(dtype), B.to(dtype)


def in_fp64(weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    return (weight.double() + SCALING * B.double() @ A.double()).norm(dim=1)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("rank", [0, 1, 3])
def test_is_the_norm_of_each_output_feature(function, rank: int) -> None:
    given = factors(rank=rank)
    torch.testing.assert_close(function(*given, SCALING), in_fp64(*given), rtol=1e-13, atol=0)


def test_nearly_cancelling_rows_keep_their_digits() -> None:
    """In fp32 W + s·BA itself is wrong by about 2⁻²⁴ of W: both norms must be that near, where the identity isn't."""
    given = nearly_cancelling(torch.float32)
    exact = in_fp64(*given)
    length = given[0].double().norm(dim=1)
    assert (exact < 1e-6 * length).any()
    for function in BOTH:
        assert ((function(*given, SCALING) - exact).abs() < 1e-6 * length).all()

    weight, A, B = given[0], given[1], SCALING * given[2]
    squared = weight.square().sum(1) + 2 * (B * (weight @ A.T)).sum(1) + (B @ (A @ A.T) * B).sum(1)
    bare_identity = squared.clamp(min=0).sqrt()
    assert ((bare_identity - exact).abs() > 1e-5 * length).any(), "this case is too easy to need a recomputation"


def test_nearly_cancelling_rows_in_fp64() -> None:
    given = nearly_cancelling(torch.float64)
    torch.testing.assert_close(row_norm_factored(*given, SCALING), row_norm(*given, SCALING), rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(row_norm_factored(*given, SCALING)[:9], in_fp64(*given)[:9], rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_zero_row_has_the_floor_as_its_norm(function, dtype: torch.dtype) -> None:
    weight, A, B = factors(dtype=dtype)
    weight[3] = B[3] = 0
    norm = function(weight, A, B, SCALING)
    assert norm[3] == torch.tensor(NORM_FLOOR, dtype=norm.dtype)
    assert (norm[4:] > 1).all()
    assert (1 / norm).isfinite().all()


@pytest.mark.parametrize("function", BOTH)
def test_an_exactly_cancelled_row_has_the_floor_as_its_norm(function) -> None:
    weight, A, B = factors(rank=1)
    weight[5] = -(SCALING * B[5]) @ A
    assert function(weight, A, B, SCALING)[5] == NORM_FLOOR


@pytest.mark.parametrize("function", BOTH)
def test_an_update_on_a_zero_weight(function) -> None:
    weight, A, B = factors()
    weight.zero_()
    torch.testing.assert_close(function(weight, A, B, SCALING), in_fp64(weight, A, B), rtol=1e-13, atol=0)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_inputs_are_summed_in_fp32(function, dtype: torch.dtype) -> None:
    given = factors(dtype=dtype)
    norm = function(*given, SCALING)
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm.double(), in_fp64(*given), rtol=1e-6, atol=0)


@pytest.mark.parametrize("function", BOTH)
def test_is_differentiable(function) -> None:
    inputs = [tensor.requires_grad_() for tensor in factors()]
    assert torch.autograd.gradcheck(lambda *given: function(*given, SCALING), inputs)


def test_gradients_agree_where_rows_cancel_or_vanish() -> None:
    weight, A, B = factors(rank=1)  # at rank 1 a row of BA is one product an element, and can cancel exactly
    weight[2] = B[2] = 0
    weight[5] = -(SCALING * B[5]) @ A
    weight[7] = 1e-6 * weight[7] - (SCALING * B[7]) @ A
    inputs = [tensor.requires_grad_() for tensor in (weight, A, B)]
    upstream = torch.arange(1.0, 13.0).double()
    direct, factored = (torch.autograd.grad(function(*inputs, SCALING), inputs, upstream) for function in BOTH)
    for got, want in zip(factored, direct, strict=True):
        assert want.isfinite().all()
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-12)
