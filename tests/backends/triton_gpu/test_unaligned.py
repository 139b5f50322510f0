"""Views that start anywhere: the bits of aligned copies, whatever the path, forward and backward."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lorafam import NF4Weight, quantize_nf4, reference
from lorafam import functional as F
from lorafam.backends import triton_gpu
from lorafam.ops.by_storage import joined
from tests.conftest import INTERPRETING
from tests.tolerances import assert_as_good_as_eager

Tensor = torch.Tensor
# the interpreter truncates to bf16
DTYPE = torch.float16 if INTERPRETING else torch.bfloat16
M, K, N, RANK = 5, 192, 136, 8


@pytest.fixture
def where(kernels: str) -> Iterator[str]:
    triton_gpu.forget()
    yield "cuda" if kernels == "cuda" else "cpu"
    triton_gpu.forget()


def random(where: str, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(where)


def odd(value: Any) -> Any:
    """Copies that start one element after a multiple of 16 bytes."""
    if isinstance(value, NF4Weight):
        return value.with_tensors({name: odd(tensor) for name, tensor in value.tensors().items()})
    if isinstance(value, list):
        return [odd(one) for one in value]
    if not isinstance(value, Tensor):
        return value
    flat = value.detach().reshape(-1)
    view = torch.cat([flat[:1], flat])[1:].view(value.shape)
    assert view.data_ptr() % 16 == value.element_size()
    return view.requires_grad_(value.requires_grad)


def weight_of(storage: str, where: str) -> Any:
    dense = random(where, N, K)
    return quantize_nf4(dense) if storage == "nf4" else dense.to(DTYPE)


def results(method: str, weight: Any, tokens: int, where: str, shift: Any) -> list[Tensor]:
    """The output and all gradients, of arguments that went through `shift`."""
    leaves = {
        "x": random(where, tokens, K).to(DTYPE) + 1,
        "A": random(where, RANK, K),
        "B": random(where, N, RANK),
        "bias": random(where, N).to(DTYPE),
    }
    if method == "dora_linear":
        leaves["magnitude"] = random(where, N).abs() + 0.5
    given = {name: shift(leaf.requires_grad_()) for name, leaf in leaves.items()}
    more = {"scaling": 0.5, "dropout_p": 0.2, "training": True, "seed": 3}
    y = getattr(F, method)(weight=shift(weight), **given, **more)
    return [y, *torch.autograd.grad(y, list(given.values()), shift(random(where, tokens, N).to(y)))]


@pytest.mark.simulated
@pytest.mark.parametrize(("storage", "tokens"), [("dense", M), ("nf4", M), ("nf4", 40)])
def test_lora(storage: str, tokens: int, where: str) -> None:
    weight = weight_of(storage, where)
    assert same(*(results("lora_linear", weight, tokens, where, shift) for shift in (odd, lambda value: value)))


@pytest.mark.simulated
@pytest.mark.parametrize("product", ["cublas", "triton"])
def test_lora_by_the_staged_path(product: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafam.kernels.paths import STAGED, Route

    for op in ("lora_linear", "lora_linear_grad"):
        module = importlib.import_module(f"lorafam.backends.triton_gpu.{op}")
        monkeypatch.setattr(module, "path_of", lambda *_: Route(STAGED, product))
    weight = weight_of("nf4", where)
    assert same(*(results("lora_linear", weight, 40, where, shift) for shift in (odd, lambda value: value)))


@pytest.mark.parametrize("storage", ["dense", "nf4"])
def test_row_norm(storage: str, where: str) -> None:
    """Its loads decide the order of its sums."""
    rows, columns = 1024, 128
    dense = random(where, rows, columns)
    weight = quantize_nf4(dense) if storage == "nf4" else dense
    decoded = weight.dequantize(torch.float32) if storage == "nf4" else dense
    A, B = random(where, RANK, columns), random(where, rows, RANK)
    norm = F.row_norm(odd(weight), odd(A), odd(B), 1.0)
    eager = torch.linalg.vector_norm(decoded + B @ A, dim=1)
    exact = reference.row_norm(decoded.double(), A.double(), B.double(), 1.0)
    assert_as_good_as_eager(norm, eager, exact)


def test_a_group_in_one_launch(where: str) -> None:
    weights = [weight_of("nf4", where), quantize_nf4(random(where, 72, K))]
    P = list(random(where, M, 2 * RANK).split(RANK, 1))
    factors = [random(where, N, RANK), random(where, 72, RANK)]

    def run(shift: Any) -> list[Tensor]:
        storages = joined([shift(weight).storage() for weight in weights])
        x, bias = random(where, M, K).to(DTYPE), [random(where, N), random(where, 72)]
        return triton_gpu.lora_linear_group(shift(x), *storages, shift(P), shift(factors), shift(bias))

    assert same(run(odd), run(lambda value: value))


@pytest.mark.parametrize("double_quant", [False, True])
def test_four_bit_storage(double_quant: bool, where: str) -> None:
    dense = random(where, N, K).to(DTYPE)
    weight, shifted = (quantize_nf4(one, 64, double_quant) for one in (dense, odd(dense)))
    assert same(list(weight.tensors().values()), list(shifted.tensors().values()))
    assert torch.equal(odd(weight).dequantize(torch.float32), weight.dequantize(torch.float32))


def test_dropout(where: str) -> None:
    x, seed = random(where, M, K).to(DTYPE), torch.tensor(7, device=where)
    assert torch.equal(triton_gpu.dropout(odd(x), odd(seed), 0.3), triton_gpu.dropout(x, seed, 0.3))


def test_rows_of_a_larger_matrix(where: str) -> None:
    """As users make them: rows and columns cut out, so that neither is aligned."""
    weight = weight_of("nf4", where)
    x = random(where, M + 1, K + 1).to(DTYPE)
    A, B = random(where, RANK, K), random(where, N, RANK)
    for view in (x.view(-1)[1 : 1 + M * K].view(M, K), x[1:, 1:], x.narrow(1, 1, K)[1:]):
        y = F.lora_linear(view, weight, A, B, 0.5)
        assert torch.equal(y, F.lora_linear(view.clone(memory_format=torch.contiguous_format), weight, A, B, 0.5))


def same(found: list[Tensor], wanted: list[Tensor]) -> bool:
    return len(found) == len(wanted) and all(map(torch.equal, found, wanted))
