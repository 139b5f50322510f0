"""Kernels laid out once and run again: other shapes, dtypes, strides, addresses, threads in any order."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
import torch

import lorafam
from lorafam import functional as F
from tests.scenarios.models import near

Tensor = torch.Tensor
WEIGHTS = {
    (rows, columns, double): lorafam.quantize_nf4(torch.randn(rows, columns) * 0.2, double_quant=double)
    for rows, columns, double in ((130, 96, False), (64, 128, True))
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def viewed(tensor: Tensor, chance: random.Random) -> Tensor:
    """The same values in another place, order or form."""
    kind = chance.randrange(5)
    if kind == 1:
        return torch.stack([tensor, tensor], -1)[..., 0]
    if kind == 2:
        return tensor.mT.contiguous().mT if tensor.ndim > 1 else tensor.clone()
    if kind == 3:
        return torch.cat([tensor.new_zeros(3), tensor.flatten()])[3:].view(tensor.shape)
    if kind == 4 and tensor.dtype == torch.float32:
        return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    return tensor.clone()


def one_call(chance: random.Random) -> None:
    (rows, columns, _), weight = chance.choice(list(WEIGHTS.items()))
    # few kinds, so that each comes back with other tokens
    dora, rank, tokens = chance.random() < 0.5, chance.choice([4, 17]), chance.choice([0, 1, 3, 17, 40])
    dtype = chance.choice([torch.float32, torch.bfloat16])
    generator = torch.Generator().manual_seed(chance.randrange(1 << 30))
    draw = lambda *shape: torch.randn(shape, generator=generator) * 0.3  # noqa: E731
    x, A, B, m, bias = draw(tokens, columns), draw(rank, columns), draw(rows, rank), draw(rows).abs() + 1, draw(rows)
    # strided factors go op by op: seldom
    given = [
        one if place and chance.random() < 0.9 else viewed(one, chance)
        for place, one in enumerate((x.to(dtype), A, B, m, bias))
    ]
    given = [one.detach().requires_grad_() for one in given]
    grad = viewed(draw(tokens, rows).to(dtype), chance)
    scale = 2.0
    x, A, B, m, bias = given
    y = F.dora_linear(x, weight, A, B, m, scale, bias) if dora else F.lora_linear(x, weight, A, B, scale, bias)
    leaves = given if dora else [x, A, B, bias]
    found = torch.autograd.grad(y, leaves, grad)
    wide = {id(one): one.detach().double().requires_grad_() for one in given}
    x, A, B, m, bias = wide.values()
    W = weight.dequantize(torch.float32).double()
    wanted_y = x @ W.T + scale * (x @ A.T @ B.T)
    if dora:
        wanted_y = m / (W + scale * B @ A).detach().norm(dim=1) * wanted_y
    wanted_y = wanted_y + bias
    wanted = torch.autograd.grad(wanted_y, [wide[id(leaf)] for leaf in leaves], grad.double())
    for got, want in zip((y, *found), (wanted_y.detach(), *wanted), strict=True):
        if want.numel() and want.any():
            near(got, want, 2e-5 if dtype == torch.float32 else 3e-2)
        else:
            assert not got.any()


@pytest.mark.parametrize("seed", range(3))
def test_calls_in_any_order(seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(60):
        if chance.random() < 0.1:
            torch.set_num_threads(chance.choice([1, 2]))
        one_call(chance)


def test_two_threads_at_once() -> None:
    failed: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(40):
                one_call(chance)
        except BaseException as error:
            failed.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in (7, 8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failed
