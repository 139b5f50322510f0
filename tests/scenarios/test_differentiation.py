"""Gradients of gradients, torch.func and forward-mode AD through adapted layers: as the formula in fp64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

import lorafam
from lorafam import functional as F
from lorafam import reference
from lorafam.backends import selection
from tests.scenarios.models import Model, each_way, near, tokens

Tensor = torch.Tensor
Leaves = tuple[Tensor, ...]
Call = Callable[..., Tensor]

pytestmark = pytest.mark.filterwarnings("ignore::lorafam.backends.selection.DetourWarning")
each_method = pytest.mark.parametrize("method", ["lora", "dora"])


def again(f: Call, leaves: Leaves) -> list[Tensor]:
    """First, second and third derivatives."""
    found, total = [], f(*leaves).sin().sum()
    for _ in range(3):
        grads = torch.autograd.grad(total, leaves, create_graph=True)
        found += grads
        total = sum(one.square().sum() for one in grads)
    return found


def gradient_penalty(f: Call, leaves: Leaves) -> list[Tensor]:
    """The output's gradient is a constant here."""
    y = f(*leaves)
    (dx,) = torch.autograd.grad(y.sum(), leaves[:1], create_graph=True)
    loss = y.square().mean() + ((dx.norm(dim=-1) - 1) ** 2).sum()
    return list(torch.autograd.grad(loss, leaves))


def batch_of_gradients(f: Call, leaves: Leaves) -> list[Tensor]:
    y = f(*leaves)
    units = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)[:5]
    return list(torch.autograd.grad(y, leaves, units, is_grads_batched=True))


def hvp(f: Call, leaves: Leaves) -> list[Tensor]:
    loss = lambda x: f(x, *leaves[1:]).square().sum()  # noqa: E731
    return [torch.autograd.functional.hvp(loss, leaves[0], leaves[0].cos())[1]]


def checkpointed(f: Call, leaves: Leaves) -> list[Tensor]:
    y = torch.utils.checkpoint.checkpoint(f, *leaves, use_reentrant=False)
    grads = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    return list(torch.autograd.grad(sum(one.square().sum() for one in grads), leaves))


RECORDED = (again, gradient_penalty, batch_of_gradients, hvp, checkpointed)


def per_sample(f: Call, leaves: Leaves) -> list[Tensor]:
    x, *rest = leaves
    every = tuple(range(1, len(leaves)))
    return list(vmap(grad(lambda *one: f(*one).square().sum(), every), (0, *(None for _ in rest)))(x, *rest))


def forward_mode(f: Call, leaves: Leaves) -> list[Tensor]:
    return [jvp(f, leaves, tuple(map(torch.cos, leaves)))[1], linearize(f, *leaves)[1](*map(torch.cos, leaves))]


def dual_tensors(f: Call, leaves: Leaves) -> list[Tensor]:
    found = []
    for recorded in (True, False):
        with forward_ad.dual_level(), torch.set_grad_enabled(recorded):
            y = f(*(forward_ad.make_dual(leaf, leaf.cos()) for leaf in leaves))
            tangent = forward_ad.unpack_dual(y).tangent
            assert tangent is not None
            found.append(tangent)
    return found


def jacobians(f: Call, leaves: Leaves) -> list[Tensor]:
    of_one = lambda row: f(row.unsqueeze(0), *leaves[1:]).sin().squeeze(0)  # noqa: E731
    row = leaves[0][0]
    return [jacrev(of_one)(row), jacfwd(of_one)(row), hessian(lambda one: of_one(one).sum())(row)]


def ensemble(f: Call, leaves: Leaves) -> list[Tensor]:
    x, *rest = leaves
    return [vmap(f, (None, *(0 for _ in rest)))(x, *(torch.stack([one, 2 * one]) for one in rest))]


def pulled_back(f: Call, leaves: Leaves) -> list[Tensor]:
    y, back = vjp(f, *leaves)
    return [y, *back(y.detach())]


TRANSFORMS = (per_sample, forward_mode, dual_tensors, jacobians, ensemble, pulled_back)


def leaves_of(model: Model, x: Tensor) -> tuple[Leaves, list[str]]:
    """x and the adapter's parameters, and their names in the model."""
    A, B, _, magnitude = model.factors()
    parameters = [one for one in (A, B, magnitude) if one is not None]
    names = {id(parameter): name for name, parameter in model.net.named_parameters()}
    return (x.requires_grad_(), *parameters), [names[id(one)] for one in parameters]


def formula(model: Model) -> Call:
    W, bias, scaling = model.weight(), model.base.bias.detach().double(), model.factors().scaling

    def y(x: Tensor, A: Tensor, B: Tensor, magnitude: Tensor | None = None) -> Tensor:
        product = x @ W.T + scaling * (x @ A.T @ B.T)
        if magnitude is not None:
            product = magnitude / (W + scaling * B @ A).detach().norm(dim=1) * product
        return product + bias

    return y


def compare(found: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(found) == len(wanted)
    for got, want in zip(found, wanted, strict=True):
        assert got.shape == want.shape
        near(got, want)


def doubled(leaves: Leaves) -> Leaves:
    return tuple(leaf.detach().double().requires_grad_() for leaf in leaves)


@each_way
@each_method
@pytest.mark.parametrize("situation", RECORDED, ids=lambda one: one.__name__)
def test_gradients_of_gradients(way: str, method: str, situation: Callable[..., list[Tensor]]) -> None:
    model = Model(way, method=method)
    leaves, _ = leaves_of(model, tokens(3))
    compare(situation(lambda x, *_: model(x), leaves), situation(formula(model), doubled(leaves)))


@each_way
@each_method
@pytest.mark.parametrize("situation", TRANSFORMS, ids=lambda one: one.__name__)
def test_transforms(way: str, method: str, situation: Callable[..., list[Tensor]]) -> None:
    model = Model(way, method=method)
    leaves, names = leaves_of(model, tokens(3))
    f = lambda x, *values: functional_call(model.net, dict(zip(names, values, strict=True)), (x,))  # noqa: E731
    plain = tuple(leaf.detach() for leaf in leaves)
    compare(situation(f, plain), situation(formula(model), tuple(leaf.double() for leaf in plain)))


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize(
    "call", ["adalora", "dora with dropout", "dora's norm", "grouped", "by row", "frozen", "penalty"]
)
@pytest.mark.parametrize("situation", [again, forward_mode, batch_of_gradients], ids=lambda one: one.__name__)
def test_every_function(call: str, quantised: bool, situation: Callable[..., list[Tensor]]) -> None:
    torch.manual_seed(0)
    dense = torch.randn(24, 32) * 0.3
    weight: Any = lorafam.quantize_nf4(dense) if quantised else dense
    W = (weight.dequantize(torch.float32) if quantised else dense).double()
    x, A, B, E, m = torch.randn(4, 32), torch.randn(3, 32), torch.randn(24, 3), torch.randn(3, 1), torch.rand(24) + 1
    mask = reference.dropout_mask(5, 4, 32, 0.4, torch.float64)
    drop = {"dropout_p": 0.4, "training": True, "seed": 5, "dora_dropout": "input"}

    def dora(x: Tensor, A: Tensor, B: Tensor, m: Tensor) -> Tensor:
        c, x_d = m / (W + 2 * B @ A).detach().norm(dim=1), x * mask
        return x @ W.T + (c - 1) * (x_d @ W.T) + c * 2 * (x_d @ A.T @ B.T)

    def by_row(x: Tensor, A: Tensor, B: Tensor) -> Tensor:
        chosen = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64).unsqueeze(1)
        return x @ W.T + 2 * chosen * (x @ A.T @ B.T)

    def deviation(P: Tensor) -> Tensor:
        return (P @ P.T - torch.eye(3, dtype=P.dtype)).norm()

    pairs: dict[str, tuple[Call, Call, Leaves]] = {
        "adalora": (
            lambda x, A, E, B: F.adalora_linear(x, weight, A, E, B, 2.0, 3),
            lambda x, A, E, B: x @ W.T + 2 / (3 + 1e-5) * (x @ (A * E).T @ B.T),
            (x, A, E, B),
        ),
        "dora with dropout": (lambda x, A, B, m: F.dora_linear(x, weight, A, B, m, 2.0, **drop), dora, (x, A, B, m)),
        "dora's norm": (
            lambda A, B: F.row_norm(weight, A, B, 2.0, differentiable=True),
            lambda A, B: (W + 2 * B @ A).norm(dim=1),
            (A, B),
        ),
        "grouped": (
            lambda x, A, B: torch.cat(F.grouped_lora_linear(x, [weight] * 2, [A, A], [B, -B], [2.0, 1.0]), 1),
            lambda x, A, B: torch.cat([x @ W.T + 2 * (x @ A.T @ B.T), x @ W.T - x @ A.T @ B.T], 1),
            (x, A, B),
        ),
        "by row": (
            lambda x, A, B: F.grouped_lora_linear(x, weight, [A], [B], [2.0], rows=torch.tensor([0, -1, 0, 0])),
            by_row,
            (x, A, B),
        ),
        "frozen": (lambda x, m: F.nf4_linear(x, weight, m), lambda x, m: x @ W.T + m, (x, m)),
        "penalty": (
            lambda A, B: F.orthogonality_penalty([A], [B]),
            lambda A, B: (deviation(A) + deviation(B.T)) / 2,
            (A, B),
        ),
    }
    f, plain, given = pairs[call]
    leaves = tuple(one.clone().requires_grad_() for one in given)
    if situation is again and call == "frozen":
        f, plain = (lambda x, m, g=g: g(x, m) * m for g in (f, plain))
    compare(situation(f, leaves), situation(plain, doubled(leaves)))


def test_a_parameter_that_the_input_hangs_on_has_its_own_share() -> None:
    A, B, W = torch.randn(4, 4).requires_grad_(), torch.randn(4, 4).requires_grad_(), torch.randn(4, 4)
    found = []
    for f, leaves in ((F.lora_linear, (A, B)), (reference.lora_linear, doubled((A, B)))):
        x = f(leaves[0], W.to(leaves[0]), *leaves, 0.5)
        y = f(x, W.to(x), *leaves, 0.5)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), leaves))
    compare(list(found[0]), list(found[1]))


def test_buffers_that_are_put_in_for_a_call() -> None:
    layers = [lorafam.NF4Linear.from_linear(nn.Linear(64, 16)) for _ in range(2)]
    x = tokens(3)
    assert torch.equal(functional_call(layers[0], layers[1].state_dict(), (x,)), layers[1](x))
    assert torch.equal(functional_call(layers[0], dict(layers[0].named_buffers()), (x,)), layers[0](x))


@pytest.mark.filterwarnings("default::lorafam.backends.selection.DetourWarning")
def test_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_TOLD", set())
    model, x = Model("dense"), tokens(3).requires_grad_()
    with pytest.warns(selection.DetourWarning, match="eager PyTorch, slowly: a gradient is differentiated again"):
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
    with pytest.warns(selection.DetourWarning, match=r"a torch.func transform"):
        jvp(model, (x,), (x,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.autograd.grad(model(x).sum(), x, create_graph=True)
        jvp(model, (x,), (x,))
        model(x).sum().backward()
