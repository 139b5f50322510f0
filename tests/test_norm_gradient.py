"""DoRA with the gradient through its norm, against autograd of the plain formula in fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lorafam
from lorafam import AdapterConfig, DoraLinear, quantize_nf4, reference
from lorafam import functional as F
from tests.conftest import INTERPRETING, device
from tests.model.tiny import tiny_model, tokens
from tests.tolerances import assert_as_good_as_eager

Tensor = torch.Tensor
M, N, K, R = 40, 200, 128, 8
BACKENDS = [] if INTERPRETING else ["numba", "eager"]


def make(dtype: torch.dtype, storage: str) -> tuple[dict[str, Any], Tensor]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device())

    weight: Any = random(N, K, scale=0.2).to(dtype)
    dense = weight
    if storage == "nf4":
        weight = quantize_nf4(weight)
        dense = weight.dequantize(dtype)
    given = {
        "x": random(M, K).to(dtype),
        "weight": weight,
        "A": random(R, K, scale=0.2),
        "B": random(N, R, scale=0.2),
        "magnitude": random(N).abs() + 0.5,
        "scaling": 1.5,
        "bias": random(N).to(dtype),
    }
    return given, dense


LEAVES = ("x", "A", "B", "magnitude", "bias")


def plain(x: Tensor, weight: Tensor, A: Tensor, B: Tensor, magnitude: Tensor, scaling: float, bias: Tensor) -> Tensor:
    """m / ‖W + s B A‖ ∘ (x Wᵀ + s x Aᵀ Bᵀ) + bias by autograd."""
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(weight.to(wide) + scaling * B @ A, dim=1)
    product = (x @ weight.T).to(wide) + scaling * (x.to(wide) @ A.T @ B.T)
    return (magnitude / norm * product + bias).to(x.dtype)


def gradients(forward: Any, given: dict[str, Any], dtype: torch.dtype | None = None, **more: Any) -> dict[str, Tensor]:
    leaves = {name: given[name].detach().to(dtype or given[name].dtype).requires_grad_() for name in LEAVES}
    y = forward(**{**given, **leaves}, **more)
    grad_y = torch.randn(M, N, generator=torch.Generator().manual_seed(3)).to(y)
    found = torch.autograd.grad(y, list(leaves.values()), grad_y)
    return {"y": y.detach(), **{f"d{name}": grad for name, grad in zip(leaves, found, strict=True)}}


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
@pytest.mark.parametrize("storage", ["dense", "nf4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_gradient(dtype: torch.dtype, storage: str, backend: str) -> None:
    given, dense = make(dtype, storage)
    ours = gradients(F.dora_linear, given, norm_gradient=True)
    eager = gradients(plain, {**given, "weight": dense})
    exact = gradients(plain, {**given, "weight": dense.double()}, torch.float64)
    for name in ("y", "dx", "dA", "dB"):
        assert_as_good_as_eager(ours[name], eager[name], exact[name], name=name)
    # few elements; held to the ratio rule in tests/test_functional.py
    near = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.2}
    for name in ("dmagnitude", "dbias"):
        torch.testing.assert_close(ours[name].double(), exact[name], **near)
    without = gradients(F.dora_linear, given)
    assert (without["dB"] - ours["dB"]).norm() > 0.1 * ours["dB"].norm()


@pytest.mark.parametrize("backend", BACKENDS, indirect=True)
def test_dropout_on_both_paths(backend: str) -> None:
    """PEFT's dropout with the same gradient: of the product with the dropped input."""
    given, dense = make(torch.float32, "dense")
    mask = reference.dropout_mask(5, M, K, 0.3, torch.float64, device())
    drop = {"dropout_p": 0.3, "training": True, "seed": 5, "dora_dropout": "input"}
    ours = gradients(F.dora_linear, given, norm_gradient=True, **drop)

    def formula(
        x: Tensor, weight: Tensor, A: Tensor, B: Tensor, magnitude: Tensor, scaling: float, bias: Any
    ) -> Tensor:
        norm = torch.linalg.vector_norm(weight + scaling * B @ A, dim=1)
        x_d = x * mask.to(x.dtype)
        P = scaling * (x_d @ A.T @ B.T)
        return x @ weight.T + bias + (magnitude / norm - 1) * (x_d @ weight.T) + magnitude / norm * P

    exact = gradients(formula, {**given, "weight": dense.double()}, torch.float64)
    for name, value in exact.items():
        torch.testing.assert_close(ours[name].double(), value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("storage", ["dense", "nf4"])
def test_the_norm_alone(storage: str) -> None:
    given, dense = make(torch.float32, storage)
    A, B = (given[name].clone().requires_grad_() for name in ("A", "B"))
    scale = torch.rand(R).requires_grad_()
    grad_n = torch.randn(N)
    found = torch.autograd.grad(F.row_norm(given["weight"], A, B, scale, differentiable=True), (A, B, scale), grad_n)
    wide = [tensor.detach().double().requires_grad_() for tensor in (A, B, scale)]
    exact = torch.linalg.vector_norm(dense.double() + (wide[1] * wide[2]) @ wide[0], dim=1)
    for a, b in zip(found, torch.autograd.grad(exact, wide, grad_n.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)
    assert not F.row_norm(given["weight"], A, B, 1.0).requires_grad
    with torch.no_grad():
        assert not F.row_norm(given["weight"], A, B, 1.0, differentiable=True).requires_grad


@pytest.mark.parametrize("captured", [False, True], ids=["eager", "captured"])
@pytest.mark.parametrize("level", [1e-4, 0.03, 0.5])
def test_rows_that_nearly_cancel(level: float, captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An update that takes every other row away but for a part; also where no value can be asked for."""
    monkeypatch.setattr("lorafam.autograd.row_norm.has_no_value_now", lambda tensor: captured)
    generator = torch.Generator().manual_seed(0)
    A, B, W = (torch.randn(shape, generator=generator) for shape in ((R, K), (N, R), (N, K)))
    W[::2] = -1.5 * (B @ A)[::2] + level * W[::2]
    found = {}
    for who, dtype in (("ours", torch.float32), ("eager", torch.float32), ("exact", torch.float64)):
        a, b = (one.to(dtype).requires_grad_() for one in (A, B))
        if who == "ours":
            norm = F.row_norm(W, a, b, 1.5, differentiable=True)
        else:
            norm = torch.linalg.vector_norm(W.to(dtype) + 1.5 * b @ a, dim=1)
        found[who] = torch.autograd.grad(norm.sum(), (a, b))
    for ours, eager, exact in zip(*found.values(), strict=True):
        assert_as_good_as_eager(ours, eager, exact, least=len(exact))


def test_a_row_of_zeros_has_no_gradient() -> None:
    weight, A, B = torch.randn(6, 32), torch.randn(2, 32).requires_grad_(), torch.randn(6, 2).requires_grad_()
    with torch.no_grad():
        weight[2], B[2] = 0.0, 0.0
    F.row_norm(weight, A, B, 1.0, differentiable=True).sum().backward()
    assert A.grad is not None
    assert A.grad.isfinite().all()
    assert B.grad is not None
    assert B.grad[2].eq(0).all()


def test_layer_and_model() -> None:
    """The layer trains with it, and keeps its norm in evaluation as ever."""
    torch.manual_seed(0)
    layers = [DoraLinear(torch.nn.Linear(32, 24), r=4, norm_gradient=exact) for exact in (True, False)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        with torch.no_grad():
            layer.B.copy_(torch.linspace(-1, 1, 96).view(24, 4))
    x = torch.randn(5, 32)
    assert torch.equal(layers[0](x), layers[1](x))
    for layer in layers:
        layer(x).square().sum().backward()
    assert not torch.allclose(layers[0].B.grad, layers[1].B.grad)
    assert torch.equal(layers[0].magnitude.grad, layers[1].magnitude.grad)
    config = AdapterConfig(method="dora", r=4, dora_norm_gradient=True, target_modules=["q_proj"])
    model: Any = lorafam.adapt(tiny_model(), config)
    model(tokens(), labels=tokens()).loss.backward()
    compiled = torch.compile(layers[0], backend="aot_eager", fullgraph=True)
    layers[0].zero_grad()
    compiled(x).square().sum().backward()
    expected = layers[0].B.grad.clone()
    layers[0].zero_grad()
    layers[0](x).square().sum().backward()
    torch.testing.assert_close(expected, layers[0].B.grad, rtol=1e-4, atol=1e-4)
