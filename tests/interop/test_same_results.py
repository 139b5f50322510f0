"""Accelerated models beside PEFT's own, by the ratio rule against the same model in fp64: logits, the loss of every
token over 20 steps, and every gradient, for each method, base, dropout and way of running.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import lorafam
from tests.interop.tiny_lm import BASES, METHODS, in_double, losses, peft_model, tokens, trainable, with_masks
from tests.tolerances import assert_as_good_as_eager

STEPS = 20
MODES = ("plain", "autocast", "checkpointing", "reentrant checkpointing", "compile")
Gradients = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def trained(
    model: nn.Module, call: Callable[[torch.Tensor], torch.Tensor], mode: str
) -> tuple[torch.Tensor, Gradients]:
    """The losses [steps, tokens] of training, and the first step's gradients."""
    parameters = trainable(model)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1, momentum=0.5)
    curve, first = [], {}
    for step in range(STEPS):
        torch.manual_seed(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
            loss = call(tokens(seed=step % 4))
        loss.mean().backward()
        curve.append(loss.detach())
        if step == 0:
            first = {name: parameter.grad.clone() for name, parameter in parameters.items()}
        optimizer.step()
        optimizer.zero_grad()
    return torch.stack(curve), first


def run(
    model: nn.Module, mode: str, trains: bool = True, compiled: bool = False
) -> tuple[torch.Tensor, torch.Tensor, Gradients]:
    """Logits in evaluation, losses and gradients in training."""
    model.base_model.model.checkpointing = {"checkpointing": False, "reentrant checkpointing": True}.get(mode)
    model.eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        logits = model(tokens(rows=2))
    model.train()
    if not trains:
        return logits, torch.empty(0), {}
    forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
    return logits, *trained(model, lambda batch: losses(forward, batch), mode)


def cannot_train(method: str, base: str) -> bool:
    """PEFT 0.21's DoRA takes the scales from bitsandbytes' 8-bit layers on a CPU when it decodes them."""
    return (method, base) == ("dora", "int8")


def normalised(found: Gradients, exact: Gradients) -> torch.Tensor:
    """All gradients in one, each divided by the RMS of the exact one: none outweighs another."""
    assert found.keys() == exact.keys()
    parts = [(found[name].double() / exact[name].square().mean().sqrt()).flatten() for name in exact]
    return torch.cat(parts)


def narrowed(model: nn.Module) -> nn.Module:
    """bf16 adapters with an fp32 magnitude, as TRL trains a quantised model."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data = parameter.data.to(torch.bfloat16)
    return model


def compare(method: str, base: str, dropout: float, mode: str, narrow: bool = False) -> None:
    theirs, ours = (peft_model(method, base, dropout) for _ in range(2))
    if narrow:
        theirs, ours = narrowed(theirs), narrowed(ours)
    exact = in_double(with_masks(theirs))
    report = lorafam.accelerate(ours)
    wanted = "base + low rank" if base == "int8" else "fused"
    expected = {wanted} if not (base == "int8" and method == "dora" and dropout) else {"PEFT"}
    assert {row.path for row in lorafam.accelerate(ours.train()).rows} == expected, str(report)
    right = run(exact, "plain" if mode == "autocast" else mode)
    trains = not cannot_train(method, base)
    eager, mine = run(theirs, mode, trains), run(ours, mode, trains, compiled=mode == "compile")
    assert_as_good_as_eager(mine[0], eager[0], right[0], name="logits")
    if not trains:
        return
    assert right[1][-1].mean() < right[1][0].mean()
    assert_as_good_as_eager(mine[1], eager[1], right[1], name="losses")
    gradients = [normalised(found[2], right[2]).float() for found in (mine, eager)]
    assert {name: grad.dtype for name, grad in mine[2].items()} == {name: g.dtype for name, g in eager[2].items()}
    assert_as_good_as_eager(*gradients, normalised(right[2], right[2]), name="gradients")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_logits_losses_and_gradients(method: str, base: str, dropout: float, mode: str) -> None:
    compare(method, base, dropout, mode)


# PEFT's VeRA multiplies x in the vectors' dtype by fp32 projections, and raises
@pytest.mark.parametrize("base", ["bf16", "nf4"])
@pytest.mark.parametrize("method", [name for name in METHODS if name != "vera"])
def test_bf16_adapters_with_an_fp32_magnitude(method: str, base: str) -> None:
    compare(method, base, 0.1, "plain", narrow=True)


def test_peft_itself_cannot_train_dora_on_eight_bits() -> None:
    """Once it can, `cannot_train` has to go."""
    model = peft_model("dora", "int8").eval()
    model(tokens())
    model.train()
    with pytest.raises(AttributeError, match="unsqueeze"):
        losses(model, tokens())


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("method", METHODS)
def test_decelerate_gives_the_same_bits_back(method: str, base: str) -> None:
    model = peft_model(method, base, 0.1)
    names, shown = list(model.state_dict()), repr(model)
    before = copy.deepcopy(model)
    trains = not cannot_train(method, base)
    plain = run(before, "plain", trains)
    lorafam.accelerate(model)
    assert list(model.state_dict()) == names
    assert repr(model) == shown
    lorafam.decelerate(model)
    assert [type(child) for child in model.modules()] == [type(child) for child in before.modules()]
    again = run(model, "plain", trains)
    assert all(torch.equal(a, b) for a, b in zip(plain[:2], again[:2], strict=True))
    assert all(torch.equal(again[2][name], gradient) for name, gradient in plain[2].items())
