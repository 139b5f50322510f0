"""Where digits are lost: a bias far larger than the product beside it; what autocast narrows."""

from __future__ import annotations

import pytest
import torch

import lorafam
from lorafam import functional as F
from tests.scenarios.models import Model, each_way, near, tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_dm_beside_a_large_bias(dtype: torch.dtype, quantised: bool, size: float) -> None:
    """Plain PEFT's order, the bias taken off the rounded output again, is a third off as well."""
    torch.manual_seed(0)
    dense = torch.randn(48, 64, dtype=dtype) * 0.05
    weight = lorafam.quantize_nf4(dense) if quantised else dense
    W = (weight.dequantize(torch.float32) if quantised else dense).double()
    x, A, B = torch.randn(40, 64, dtype=dtype), torch.randn(4, 64) * 0.1, torch.randn(48, 4) * 0.1
    bias = (torch.randn(48) * size).to(dtype)
    norm = F.row_norm(weight, A, B, 2.0)
    magnitude = (norm * 1.1).requires_grad_()
    grad = torch.randn(40, 48, dtype=dtype)
    F.dora_linear(x, weight, A, B, magnitude, 2.0, bias, norm=norm).backward(grad)
    product = x.double() @ (W + 2.0 * B.double() @ A.double()).T
    wanted = (grad.double() * product).sum(0) / norm.double()
    assert (magnitude.grad.double() - wanted).norm() / wanted.norm() < 0.01


@each_way
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_fp64(way: str, method: str, dtype: torch.dtype) -> None:
    model, x = Model(way, method=method), tokens(5).double()
    model.net.double()
    with torch.autocast("cpu", dtype=dtype):
        y = model(x)
    assert y.dtype == torch.float64
    near(y, model.wanted(x), 1e-6)
    y.square().sum().backward()
    assert all(factor.grad is not None for factor in model.factors()[:2])
