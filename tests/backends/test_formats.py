"""Every 4-bit format, through every op on every backend: a new row in kernels/formats.py is tested by being there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lorafam.kernels.formats import FORMATS, Format

import lorafam
from lorafam import functional as F
from lorafam import quantize_nf4, reference
from tests.conftest import device

pytestmark = [
    pytest.mark.usefixtures("backend"),
    pytest.mark.parametrize("row", [one for one in FORMATS if one.levels], ids=lambda one: one.name),
]

N, K, RANK = 48, 128, 4


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device())


def decoded(weight: lorafam.NF4Weight, row: Format) -> torch.Tensor:
    """level[code] · absmax in fp64, written from the format's definition."""
    codes = weight.codes.view(-1).cpu()
    codes = torch.stack([codes >> 4, codes & 15], 1).view(-1).long()
    absmax = weight.scales[0].cpu().double().repeat_interleave(weight.block_size)
    levels = torch.tensor(row.levels, dtype=torch.float32).double()
    return (levels[codes] * absmax).view(N, K)


@pytest.mark.parametrize("block_size", [32, 64])
def test_quantised_to_the_nearest_level_and_back(row: Format, block_size: int) -> None:
    dense = drawn(N, K, seed=0)
    weight = quantize_nf4(dense, block_size, False, quant_type=row.name)
    assert weight.quant_type == row.name
    absmax = dense.view(-1, block_size).abs().amax(1)
    assert torch.equal(weight.scales[0], absmax)
    expected = decoded(weight, row)
    torch.testing.assert_close(weight.dequantize(torch.float32).cpu().double(), expected, rtol=1e-7, atol=1e-7)
    levels = torch.tensor(sorted(row.levels), dtype=torch.float64)
    unit = dense.cpu().double() / absmax.cpu().double().repeat_interleave(block_size).view(N, K)
    nearest = (unit.unsqueeze(-1) - levels).abs().amin(-1)
    chosen = (unit - expected / absmax.cpu().double().repeat_interleave(block_size).view(N, K)).abs()
    torch.testing.assert_close(chosen, nearest, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_products(row: Format, tokens: int, double_quant: bool, dtype: torch.dtype) -> None:
    weight = quantize_nf4(drawn(N, K, seed=1).to(dtype), 64, double_quant, quant_type=row.name)
    exact = weight.dequantize(torch.float32).double()
    A, B = drawn(RANK, K, seed=2), drawn(N, RANK, seed=3)
    x, grad = drawn(tokens, K, seed=4).to(dtype), drawn(tokens, N, seed=5).to(dtype)
    leaves: list[Any] = [one.clone().requires_grad_() for one in (x, A, B)]
    y = F.lora_linear(leaves[0], weight, leaves[1], leaves[2], 0.5)
    y.backward(grad)
    wide = [one.detach().double() for one in (x, A, B)]
    right = reference.lora_linear(wide[0], exact, wide[1], wide[2], 0.5)
    grads = reference.lora_linear_grad(grad.double(), wide[0], exact, wide[1], wide[2], 0.5)
    # a coarse check that the row is used everywhere: the ratio rule holds products elsewhere
    limit = 2e-5 if dtype == torch.float32 else 4e-3
    pairs = [(y, right), (leaves[0].grad, grads.dx), (leaves[1].grad, grads.dA), (leaves[2].grad, grads.dB)]
    for found, want in pairs:
        assert (found.double() - want).norm() <= limit * want.norm()
    norm = F.row_norm(weight, A, B, 0.5).double()
    torch.testing.assert_close(norm, reference.row_norm(exact, A.double(), B.double(), 0.5), rtol=1e-4, atol=1e-5)
    group = F.grouped_lora_linear(x, [weight, weight], [A, A], [B, B], [0.5, 0.5])
    for one in group:
        assert (one.double() - right).norm() <= limit * right.norm()
