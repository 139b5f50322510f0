"""A frozen output head on lorafam's product: same results, same parameters, undone without a trace."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import lorafam
from lorafam.methods.frozen_linear import FrozenLinear, freeze_layer, thaw_layers

ROWS, COLUMNS = 4096, 320


class Model(nn.Module):
    """Embeddings tied to the head, one layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(ROWS, COLUMNS)
        self.proj = nn.Linear(COLUMNS, COLUMNS)
        self.lm_head = nn.Linear(COLUMNS, ROWS, bias=False)
        self.lm_head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.lm_head(torch.relu(self.proj(self.embed(tokens))))


@pytest.fixture(autouse=True)
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFAM_DENSE", "own")


def _model() -> Any:
    torch.manual_seed(0)
    return Model()


TOKENS = torch.arange(80).view(2, 40)


def test_adapt_takes_the_head_and_gives_it_back() -> None:
    plain, model = _model(), _model()
    before = {name: value.data_ptr() for name, value in model.state_dict().items() if "lm_head" in name}
    lorafam.adapt(model, lorafam.AdapterConfig(r=4, target_modules=["proj"]))
    assert type(model.lm_head) is FrozenLinear
    assert repr(model.lm_head) == repr(plain.lm_head)
    assert model.lm_head.weight is model.embed.weight
    assert {name: model.state_dict()[name].data_ptr() for name in before} == before
    torch.testing.assert_close(model(TOKENS), plain(TOKENS), rtol=1e-5, atol=1e-4)
    lorafam.merge_and_unload(model)
    assert type(model.lm_head) is nn.Linear
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_gradients_of_any_order() -> None:
    layer = nn.Linear(COLUMNS, ROWS).requires_grad_(False)
    layer.bias.requires_grad_(True)
    fast = copy.deepcopy(layer)
    freeze_layer(fast)
    found = []
    for each in (fast, layer):
        x = torch.randn(50, COLUMNS, generator=torch.Generator().manual_seed(1)).requires_grad_()
        (first,) = torch.autograd.grad(each(x).sin().sum(), x, create_graph=True)
        second, bias = torch.autograd.grad(first.pow(2).sum(), (x, each.bias))
        found.append((first.detach(), second, bias))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * theirs.abs().max().item())


def test_what_goes_to_the_layers_own_forward() -> None:
    layer = nn.Linear(COLUMNS, ROWS).requires_grad_(False)
    fast = copy.deepcopy(layer)
    freeze_layer(fast)
    x = torch.randn(40, COLUMNS)
    assert fast.lorafam_reason(x) is None
    _, tangent = torch.func.jvp(fast, (x,), (x,))
    assert torch.equal(tangent, torch.func.jvp(layer, (x,), (x,))[1])
    assert torch.equal(torch.func.vmap(fast)(x.view(4, 10, -1)), torch.func.vmap(layer)(x.view(4, 10, -1)))
    for wrong in (x.double(), x[:, :-1], x.to("meta"), x.int()):
        with pytest.raises(RuntimeError) as theirs:
            layer(wrong)
        with pytest.raises(RuntimeError) as ours:
            fast(wrong)
        assert str(ours.value) == str(theirs.value)
    fast.weight.requires_grad_(True)
    assert fast.lorafam_reason(x) == "its weight trains"
    fast(x).sum().backward()
    assert fast.weight.grad is not None


def test_autocast() -> None:
    layer = nn.Linear(COLUMNS, ROWS).requires_grad_(False)
    fast = copy.deepcopy(layer)
    freeze_layer(fast)
    x = torch.randn(40, COLUMNS)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = fast(x), layer(x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_copies_and_pickles() -> None:
    layer = nn.Linear(COLUMNS, ROWS).requires_grad_(False)
    freeze_layer(layer)
    x = torch.randn(40, COLUMNS)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert type(other) is FrozenLinear
        assert torch.equal(other(x), layer(x))
        thaw_layers(other)
        assert type(other) is nn.Linear


def test_accelerate_has_a_row_for_it_and_decelerate_undoes_it() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(_model(), peft.LoraConfig(target_modules=["proj"]))
    head = model.base_model.model.lm_head
    before = model(TOKENS)
    for _ in range(2):
        report = lorafam.accelerate(model)
        assert [row.path for row in report.rows] == ["fused", "frozen"]
        assert report.rows[1].name.endswith("lm_head")
        assert report.rows[1].reason.endswith("a loss without its logits")
        assert type(head) is FrozenLinear
    assert "1 fused, 1 frozen" in str(report)
    torch.testing.assert_close(model(TOKENS), before, rtol=1e-5, atol=1e-4)
    lorafam.decelerate(model)
    assert type(head) is nn.Linear
    assert torch.equal(model(TOKENS), before)


def test_small_trained_and_adapted_ones_are_left_alone() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(_model(), peft.LoraConfig(target_modules=["lm_head"]))
    assert [row.path for row in lorafam.accelerate(model).rows] == ["fused"]
    assert not any(isinstance(module, FrozenLinear) for module in model.modules())


def test_an_adapter_on_a_head_that_was_frozen_is_fused() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(_model(), peft.LoraConfig(target_modules=["proj"]))
    lorafam.accelerate(model)
    model.add_adapter("head", peft.LoraConfig(target_modules=["lm_head"]))
    model.set_adapter("head")
    assert {row.name: row.path for row in lorafam.accelerate(model).rows}["base_model.model.lm_head"] == "fused"
