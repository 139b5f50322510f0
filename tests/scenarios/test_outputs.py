"""What models do to a layer's output: changed in place, where plain PEFT trains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.scenarios.models import Model, each_way, near, tokens

Tensor = torch.Tensor


def relu(y: Tensor) -> Tensor:
    return torch.relu_(y)


def clipped(y: Tensor) -> Tensor:
    """OLMo's clip_qkv."""
    return y.clamp_(min=-1, max=1)


def added_to(y: Tensor) -> Tensor:
    y += 1.5
    return y


def part_of_a_view(y: Tensor) -> Tensor:
    y.view(-1)[:20].mul_(3)
    return y


def without_gradients(y: Tensor) -> Tensor:
    with torch.no_grad():
        y.add_(1)
    return y


CHANGES = (relu, clipped, added_to, part_of_a_view, without_gradients)
MODES = ("plain", "checkpointed", "on the CPU", "twice", "again")


def gradients(model: Model, call: Callable[[Tensor], Tensor], x: Tensor, mode: str) -> list[Tensor]:
    x = x.clone().requires_grad_()
    leaves = [x, *(one for one in (model.factors()[i] for i in (0, 1, 3)) if one is not None)]
    if mode == "checkpointed":
        y = checkpoint(call, x, use_reentrant=False)
    elif mode == "on the CPU":
        with torch.autograd.graph.save_on_cpu():
            y = call(x)
    else:
        y = call(x)
    loss = y.square().sum()
    if mode == "twice":
        torch.autograd.grad(loss, leaves, retain_graph=True)
    return list(torch.autograd.grad(loss, leaves, create_graph=mode == "again"))


@each_way
@pytest.mark.filterwarnings("ignore::lorafam.backends.selection.DetourWarning")
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_an_output_changed_in_place(
    way: str, method: str, change: Callable[[Tensor], Tensor], mode: str, shape: tuple[int, ...]
) -> None:
    model, x = Model(way, method=method), tokens(*shape)
    A, B, scaling, magnitude = model.factors()
    if magnitude is not None:
        # as trained: where it is far smaller than the norm, the product is formed again anyway
        magnitude.data.copy_((model.weight() + scaling * B.double() @ A.double()).norm(dim=1) * 1.1)
    found = gradients(model, lambda x: change(model(x)), x, mode)
    # a copy is changed, which no layer has kept
    wanted = gradients(model, lambda x: change(model(x).clone()), x, "plain")
    for got, want in zip(found, wanted, strict=True):
        near(got, want.double())
