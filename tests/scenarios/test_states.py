"""What people do to a model between two forwards: copies, files, casts, averages, hooks, other devices' detours."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel

from tests.scenarios.models import WAYS, Model, each_way, near, tokens

each_method = pytest.mark.parametrize("method", ["lora", "dora"])


def made(way: str, method: str) -> Model:
    model = Model(way, method=method).eval()
    with torch.no_grad():
        # what evaluation keeps is kept now
        model(tokens(3))
    return model


def read_again(model: Model) -> Model:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


def on_the_net(change: Callable[[Any], object]) -> Callable[[Model], Model]:
    def changed(model: Model) -> Model:
        change(model.net)
        return model

    return changed


def emptied(net: Any) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.to_empty(device="cpu").load_state_dict(state)


def through_meta(net: Any) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.to("meta").load_state_dict(state, assign=True)


def zeroed(net: Any) -> None:
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_() if parameter.is_floating_point() else None
    net.load_state_dict(state)


def scaled(net: Any) -> None:
    for parameter in net.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data * 1.5


def averaged(model: Model) -> Model:
    """Of the model and one whose factors were doubled."""
    mean = AveragedModel(model.net, use_buffers=False)
    mean.update_parameters(model.net)
    with torch.no_grad():
        mean(tokens(3))
        for tensor in model.factors()[:2]:
            tensor.mul_(2)
    mean.update_parameters(model.net)
    other = copy.copy(model)
    other.net = mean.module.eval()
    other.layer = other.net.base_model.model[0] if model.peft else other.net[0]
    return other


CHANGES: dict[str, Callable[[Model], Model]] = {
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "saved whole": read_again,
    "shared": on_the_net(lambda net: net.share_memory()),
    "to half and back": on_the_net(lambda net: net.half().float()),
    "to double by type and back": on_the_net(lambda net: net.type(torch.float64).type(torch.float32)),
    "assigned": on_the_net(lambda net: net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)),
    "emptied": on_the_net(emptied),
    "through the meta device": on_the_net(through_meta),
    "zeroed and loaded": on_the_net(zeroed),
    "scaled through .data": on_the_net(scaled),
    "frozen": on_the_net(lambda net: net.requires_grad_(False)),
    "averaged": averaged,
}


@each_way
@each_method
@pytest.mark.parametrize("change", CHANGES)
def test_the_output_is_that_of_the_present_values(change: str, method: str, way: str) -> None:
    model, x = CHANGES[change](made(way, method)), tokens(3)
    wanted = model.wanted(x)
    for mode in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            near(model(x), wanted)


class Half(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * 0.5


@pytest.mark.parametrize("way", WAYS[:3])
@each_method
def test_a_parametrised_base(way: str, method: str) -> None:
    model, x = made(way, method), tokens(3)
    before = model.weight()
    parametrize.register_parametrization(model.base, "weight", Half())
    with torch.no_grad():
        near(model(x), model.wanted(x, weight=before / 2))


@pytest.mark.parametrize("way", WAYS[:3])
def test_a_parametrised_factor(way: str) -> None:
    model, x = made(way, "lora"), tokens(3)
    base = model.wanted(x, None)
    update = model.wanted(x) - base
    owner, name = (model.layer.lora_A["default"], "weight") if model.peft else (model.layer.active, "A")
    parametrize.register_parametrization(owner, name, Half())
    with torch.no_grad():
        near(model(x), base + update / 2)


@each_way
@pytest.mark.parametrize("where", ["layer", "base"])
def test_hooks_on_outputs_and_gradients(way: str, where: str) -> None:
    model, x = made(way, "lora"), tokens(3)
    base, adapted = model.wanted(x, None), model.wanted(x)
    module = model.layer if where == "layer" else model.base
    forward = module.register_forward_hook(lambda _, args, output: output * 2)
    near(model(x), adapted * 2 if where == "layer" else adapted + base)
    forward.remove()
    gradients = []
    for backward in (False, True):
        x = tokens(3).requires_grad_()
        if backward:
            module.register_full_backward_hook(lambda _, given, output: (given[0] * 2,))
        y = model(x)
        near(y, adapted)
        y.sum().backward()
        gradients.append(x.grad.double())
    wanted = gradients[0] * 2 if where == "layer" else gradients[0] + model.weight().sum(0)
    near(gradients[1], wanted)


def gradients(model: Model, x: torch.Tensor) -> list[torch.Tensor]:
    model.net.train()
    model.net.zero_grad()
    model(x).square().sum().backward()
    return [one.grad.double() for one in model.factors() if isinstance(one, torch.Tensor)]


@each_way
@each_method
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_it_trains_after_evaluation(way: str, method: str, mode: Any) -> None:
    x, wanted = tokens(5), gradients(Model(way, method=method), tokens(5))
    model = Model(way, method=method).eval()
    with mode():
        model(x)
        model(x)
    for mine, theirs in zip(gradients(model, x), wanted, strict=True):
        near(mine, theirs)
    # switched off and on again
    trainable = [parameter for parameter in model.net.parameters() if parameter.requires_grad]
    model.net.requires_grad_(False)
    assert not model(x).requires_grad
    for parameter in trainable:
        parameter.requires_grad_(True)
    for mine, theirs in zip(gradients(model, x), wanted, strict=True):
        near(mine, theirs)


@each_way
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_traced_by_jit(way: str, method: str) -> None:
    model = Model(way, method=method).eval()
    traced = torch.jit.trace(model.net, (tokens(5),))
    x = tokens(7, seed=8)
    near(traced(x), model.wanted(x))
    A, B, *_ = model.factors()
    traced(x).square().sum().backward()
    found = A.grad.clone(), B.grad.clone()
    A.grad = B.grad = None
    model(x).square().sum().backward()
    for one, other in zip(found, (A.grad, B.grad), strict=True):
        near(one, other.double(), 1e-4)
    with torch.no_grad():
        B.mul_(2)
    near(traced(x), model.wanted(x))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_base_that_torch_quantised(method: str) -> None:
    """Its weight and its bias are methods; PEFT has no layer for it. DoRA multiplied the bias too."""
    model = Model("dense", method=method).eval()
    with torch.no_grad():
        model.base.bias.mul_(20)
    x, bias = tokens(5), model.base.bias.detach().clone()
    wanted = model.wanted(x)
    quantised = torch.ao.quantization.quantize_dynamic(model.net, {nn.Linear})
    assert type(quantised[0].base_layer) is not nn.Linear
    y = quantised(x)
    # a layer's 8 bits, of the product and not of the bias
    difference = (y.detach().double() - wanted).norm() / (wanted - bias.double()).norm()
    assert difference < 0.03
