"""Tensors whose bytes aren't their values in order: strides, expansion, offsets, lazily negated views."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import lorafam
from lorafam import functional as F
from lorafam.backends.undispatched import call
from lorafam.ops.library import OPS
from tests.ops.test_opcheck import STORAGES, arguments

Tensor = torch.Tensor


def strided(tensor: Tensor) -> Tensor:
    wide = torch.zeros(*tensor.shape, 2, dtype=tensor.dtype)
    wide[..., 0], wide[..., 1] = tensor, torch.full_like(tensor, 7)
    return wide[..., 0]


def offset(tensor: Tensor) -> Tensor:
    whole = torch.zeros(tensor.numel() + 3, dtype=tensor.dtype)
    whole[3:] = tensor.flatten()
    return whole[3:].view(tensor.shape)


def transposed(tensor: Tensor) -> Tensor:
    return tensor.mT.contiguous().mT if tensor.ndim > 1 else strided(tensor)


def negated(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return strided(tensor)
    view = torch.complex(torch.zeros_like(tensor.float()), -tensor.float()).conj().imag
    assert view.is_neg()
    return view if tensor.dtype == torch.float32 else tensor


VIEWS = (strided, offset, transposed, negated)
each_view = pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.__name__)


def replaced(args: tuple[Any, ...], view: Callable[[Tensor], Tensor]) -> list[tuple[Any, ...]]:
    """The call with one tensor after another in another form."""
    found = []
    for place, arg in enumerate(args):
        if isinstance(arg, Tensor):
            found.append((*args[:place], view(arg), *args[place + 1 :]))
        elif isinstance(arg, list):
            for index, one in enumerate(arg):
                if isinstance(one, Tensor):
                    found.append((*args[:place], [*arg[:index], view(one), *arg[index + 1 :]], *args[place + 1 :]))
    return found


def flat(result: Any) -> list[Tensor]:
    return [one for one in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(one, Tensor)]


@pytest.mark.parametrize("way", ["torch.ops", "direct"])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("op", sorted(set(OPS) - {"adalora_importance"}))
@each_view
def test_every_argument_of_every_op(op: str, storage: str, way: str, view: Callable[[Tensor], Tensor]) -> None:
    run = getattr(torch.ops.lorafam, op) if way == "torch.ops" else lambda *args: call(op, *args)
    for args in arguments(op, STORAGES[storage]()):
        wanted = flat(run(*args))
        for other in replaced(args, view):
            try:
                results = flat(run(*other))
            except ValueError as error:
                assert "expected contiguous" in str(error)  # noqa: PT017
                continue
            for result, one in zip(results, wanted, strict=True):
                torch.testing.assert_close(result, one, rtol=1e-5, atol=1e-5)


def test_expanded_arguments() -> None:
    x, bias = torch.randn(1, 96).expand(5, 96), torch.tensor(2.0).expand(10)
    for make in STORAGES.values():
        storage = make()
        y = torch.ops.lorafam.lora_linear(x, *storage, None, None, None, bias)
        wanted = torch.ops.lorafam.lora_linear(x.clone(), *storage, None, None, None, bias.clone())
        torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("view", [strided, transposed, lambda tensor: tensor.flatten()[:1].expand(tensor.numel())])
def test_a_4bit_weight_of_views_is_refused(double_quant: bool, view: Callable[[Tensor], Tensor]) -> None:
    weight = lorafam.quantize_nf4(torch.randn(16, 96), 32, double_quant)
    tensors = weight.tensors()
    for name, tensor in tensors.items():
        if tensor.numel() == 1 or view(tensor).is_contiguous():
            continue
        with pytest.raises(ValueError, match=f"{name}: expected contiguous"):
            weight.with_tensors({**tensors, name: view(tensor)})


@pytest.mark.parametrize("double_quant", [False, True])
@each_view
def test_loading_with_assign(double_quant: bool, view: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 96)
    source = lorafam.NF4Linear.from_linear(nn.Linear(96, 16), 32, double_quant)
    layer = lorafam.NF4Linear.from_linear(nn.Linear(96, 16), 32, double_quant)
    layer.load_state_dict({name: view(tensor) for name, tensor in source.state_dict().items()}, assign=True)
    torch.testing.assert_close(layer(x), source(x))


@each_view
@pytest.mark.parametrize("method", ["lora_linear", "dora_linear"])
@pytest.mark.parametrize("quantised", [False, True])
def test_functions_and_their_gradients(method: str, quantised: bool, view: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    dense = torch.randn(16, 96)
    weight = lorafam.quantize_nf4(dense) if quantised else dense
    parts = [torch.randn(5, 96), torch.randn(4, 96), torch.randn(16, 4), torch.randn(16), torch.rand(16) + 5]

    def gradients(change: int | None) -> list[Tensor]:
        given = [part.clone() if place != change else view(part).detach() for place, part in enumerate(parts)]
        x, A, B, bias, magnitude = (part.requires_grad_() for part in given)
        more = (magnitude,) if method == "dora_linear" else ()
        y = getattr(F, method)(x, weight, A, B, *more, 2.0, bias)
        y.square().sum().backward()
        return [y, *(part.grad for part in given if part.grad is not None)]

    wanted = gradients(None)
    for place in range(5 if method == "dora_linear" else 4):
        for got, one in zip(gradients(place), wanted, strict=True):
            torch.testing.assert_close(got, one, rtol=1e-4, atol=1e-3)
