"""What evaluation keeps is never older than the tensors it was formed of, whoever wrote into them and how."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.scenarios.models import Factors, Model, each_way, near, tokens

Write = Callable[[Model, torch.Tensor, torch.Tensor], None]


def in_place(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    tensor.copy_(new)


def data_copy(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    tensor.data.copy_(new)


def data_set(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    tensor.data = new.clone()


def one_element(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    tensor.data[-1, -1] += 30.0


def numpy_view(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    tensor.detach().numpy()[:] = new.numpy()


def state_dict_of_the_whole(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    state = model.net.state_dict()
    name = next(name for name, one in state.items() if one.data_ptr() == tensor.data_ptr())
    model.net.load_state_dict({**state, name: new})


def state_dict_of_its_module(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    for module in model.net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter is tensor:
                module.load_state_dict({**module.state_dict(), name: new})


def optimiser(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    tensor.grad = tensor.detach() - new
    torch.optim.SGD([tensor], lr=1.0, fused=True).step()
    tensor.grad = None


def averaged(model: Model, tensor: torch.Tensor, new: torch.Tensor) -> None:
    average = torch.optim.swa_utils.AveragedModel(nn.ParameterList([nn.Parameter(new)]))
    for parameter, mean in zip([tensor], average.parameters(), strict=True):
        parameter.detach().copy_(mean)


WRITES: tuple[Write, ...] = (
    in_place,
    data_copy,
    data_set,
    one_element,
    numpy_view,
    state_dict_of_the_whole,
    state_dict_of_its_module,
    optimiser,
    averaged,
)
each_write = pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)


def other(tensor: torch.Tensor) -> torch.Tensor:
    return torch.randn(tensor.shape, generator=torch.Generator().manual_seed(9))


@each_way
@each_write
@pytest.mark.parametrize("factor", ["A", "B", "magnitude"])
@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@torch.no_grad()
def test_every_write_into_the_factors_is_seen(way: str, write: Write, factor: str, frozen: bool) -> None:
    if factor == "magnitude" and write is one_element:
        pytest.skip("a vector")
    model, x = Model(way, method="dora").eval(), tokens(3)
    model.net.requires_grad_(not frozen) if frozen else None
    for _ in range(2):
        near(model(x), model.wanted(x))
    tensor = getattr(model.factors(), factor)
    write(model, tensor, other(tensor))
    near(model(x), model.wanted(x))


@each_way
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("write", [in_place, data_copy, data_set, numpy_view, state_dict_of_the_whole])
def test_every_write_into_a_dense_base_is_seen(way: str, write: Write, hooked: bool, training: bool) -> None:
    if way == "nf4":
        pytest.skip("codes are written by loading: the next test")
    model, x = Model(way, method="dora"), tokens(3)
    model.net.train(training)
    if hooked:
        model.base.register_forward_hook(lambda *_: None)
    with torch.set_grad_enabled(training):
        near(model(x), model.wanted(x))
        with torch.no_grad():
            write(model, model.base.weight, other(model.base.weight))
        near(model(x), model.wanted(x))


@torch.no_grad()
def test_loading_codes_is_seen() -> None:
    model, x = Model("nf4", method="dora").eval(), tokens(3)
    model(x)
    torch.manual_seed(7)
    source = Model("nf4", base=nn.Linear(64, 48), method="dora").eval()
    source.base.load_state_dict(type(source.base).from_linear(nn.Linear(64, 48)).state_dict())
    model.base.load_state_dict(source.base.state_dict())
    near(model(x), model.wanted(x))
    for name in ("codes", "nested_absmax"):
        buffer = getattr(model.base, name)
        buffer.copy_(buffer.flip(0) if name == "codes" else buffer * 3)
        near(model(x), model.wanted(x))


@each_way
@torch.no_grad()
def test_scaling_active_adapter_and_merging_are_seen(way: str) -> None:
    model, x = Model(way, ("default", "b"), method="dora").eval(), tokens(3)
    model(x)
    model.set_adapter("b")
    near(model(x), model.wanted(x, "b"))
    if model.peft:
        model.layer.set_scale("b", 3.0)
    else:
        model.layer.active.scaling = 7.0
    near(model(x), model.wanted(x, "b"))
    model.merge()
    model.layer.unmerge()
    # plain PEFT's unmerging of DoRA is exact to rounding
    near(model(x), model.wanted(x, "b"), 1e-4 if model.peft else 2e-5)


@each_way
@torch.no_grad()
def test_copies_have_their_own(way: str) -> None:
    model, x = Model(way, method="dora").eval(), tokens(3)
    model(x)
    twin = copy.deepcopy(model)
    twin.factors().B.data.copy_(other(twin.factors().B))
    near(twin(x), twin.wanted(x))
    near(model(x), model.wanted(x))
    file = io.BytesIO()
    torch.save(model.net, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    near(loaded(x), model.wanted(x))


@each_way
@torch.no_grad()
def test_evaluation_forms_no_norm_while_nothing_changes(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import lorafam.functional as F

    if way == "PEFT":
        pytest.skip("plain PEFT forms it each time")
    model, x = Model(way, method="dora").eval(), tokens(1)
    model(x)
    formed, row_norm = [], F.row_norm
    monkeypatch.setattr(F, "row_norm", lambda *args, **more: formed.append(1) or row_norm(*args, **more))
    for _ in range(3):
        model(x)
    assert not formed


def factors_of(model: Model) -> Factors:
    return model.factors()
