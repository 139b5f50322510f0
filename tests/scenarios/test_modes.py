"""Merged, disabled, active, rows, hooks: what a layer computes in each mode and in all of them together."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import lorafam
from lorafam.model import adapter_layers
from tests.model.tiny import tiny_model
from tests.model.tiny import tokens as ids
from tests.scenarios.models import Model, each_own, each_way, near, tokens


class OwnLinear(nn.Linear):
    """As some models have one, Falcon for example."""


def hook(model: Model) -> None:
    model.base.register_forward_hook(lambda *_: None)


BASES = ("plain", "hook", "own class")
each_base = pytest.mark.parametrize("base", BASES)


def made(way: str, base: str, names: tuple[str, ...] = ("default",), **settings: object) -> Model:
    if way == "nf4" and base == "own class":
        pytest.skip("a class of its own stays dense")
    model = Model(way, names, OwnLinear(64, 48) if base == "own class" else None, **settings).eval()
    if base == "hook":
        hook(model)
    return model


@each_way
@each_base
@torch.no_grad()
def test_disabled_while_merged_is_the_base(way: str, base: str) -> None:
    model, x = made(way, base), tokens(3)
    wanted, base_weight = model.wanted(x, None), model.weight()
    model.merge()
    merged = model(x)
    with model.disabled():
        near(model(x), wanted)
        near(model.weight(), base_weight, 1e-6)
    # plain PEFT unmerges for good
    near(model(x), merged.double(), 1e-5 if not model.peft else 1e-3)


@each_own
@torch.no_grad()
def test_a_merged_layer_is_merged_again_after_disabled(way: str) -> None:
    model, x = made(way, "plain"), tokens(3)
    before = model(x)
    model.merge()
    merged, stored = model(x), copy.deepcopy(model.base.state_dict())
    for _ in range(2):
        with model.disabled():
            assert model.layer.merged
    assert torch.equal(model(x), merged)
    assert all(torch.equal(tensor, stored[name]) for name, tensor in model.base.state_dict().items())
    with model.disabled():
        model.layer.unmerge()
        near(model(x), model.wanted(x, None))
    assert torch.equal(model(x), before)


@each_own
@pytest.mark.parametrize("method", ["lora", "dora"])
@torch.no_grad()
def test_merging_inside_disabled_and_into_another_format(way: str, method: str) -> None:
    model, x = made(way, "plain", method=method), tokens(3)
    base, adapted = model.wanted(x, None), model.wanted(x)
    with model.disabled():
        model.layer.merge(into="fp32")
        near(model(x), base)
    near(model(x), adapted)
    model.layer.unmerge()
    with model.disabled():
        lorafam.merge_and_unload(model.net, into="fp32")
    near(model.net(x), adapted)


@each_way
@each_base
@torch.no_grad()
def test_merged_is_the_adapted(way: str, base: str) -> None:
    model, x = made(way, base), tokens(3)
    adapted = model.wanted(x)
    model.merge()
    near(model(x), adapted, 2e-5 if way != "nf4" else 0.2)
    model.layer.unmerge()
    near(model(x), adapted)


@each_way
@each_base
@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
@torch.no_grad()
def test_rows_choose_their_adapter(way: str, base: str, shape: tuple[int, ...]) -> None:
    model, x = made(way, base, ("default", "b")), tokens(*shape)
    names = [None, "default", "b", "default"]
    y = model.by_row(x, names)
    for row, name in enumerate(names):
        near(y[row], model.wanted(x[row], name))


@each_way
@torch.no_grad()
def test_rows_while_merged(way: str) -> None:
    model, x = made(way, "plain", ("default", "b")), tokens(3, 2)
    names = [None, "default", "b"]
    wanted = [model.wanted(one, name) for one, name in zip(x, names, strict=True)]
    model.merge()
    if model.peft:
        with pytest.raises(ValueError, match="merged"):
            model.by_row(x, names)
        return
    merged = model(x)
    for y, one in zip(model.by_row(x, names), wanted, strict=True):
        near(y, one)
    assert torch.equal(model(x), merged)


@each_way
@torch.no_grad()
def test_disabled_goes_before_rows(way: str) -> None:
    model, x = made(way, "plain", ("default", "b")), tokens(2, 2)
    with model.disabled():
        near(model.by_row(x, ["b", "default"]), model.wanted(x, None))


@each_way
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_rows_in_training(way: str, dropout: float) -> None:
    model, x = Model(way, ("default", "b"), dropout=dropout), tokens(2, 200)
    model.net.train()
    for name in ("default", "b"):
        for factor in model.factors(name)[:2]:
            factor.requires_grad_()
    if model.peft:
        with pytest.raises(ValueError, match="training mode"):
            model.by_row(x, ["b", None])
        return
    y = model.by_row(x, ["b", None])
    near(y[1], model.wanted(x[1], None))
    update, exact = (
        y[0].detach().double() - model.wanted(x[0], None),
        model.wanted(x[0], "b") - model.wanted(x[0], None),
    )
    # of 200 tokens' masks the mean is near the update
    assert (update * exact).sum() / exact.square().sum() == pytest.approx(1, abs=1e-5 if dropout == 0 else 0.1)
    y.sum().backward()
    assert model.factors("b").A.grad is not None
    assert model.factors("b").A.grad.abs().sum() > 0


@each_way
@torch.no_grad()
def test_rows_with_a_bias_of_the_adapters(way: str) -> None:
    model, x = Model(way, ("default", "b"), bias=True).eval(), tokens(2, 3)
    own = model.layer.lora_B["b"] if model.peft else model.layer.adapters["b"]
    own.bias.fill_(1.5)
    y = model.by_row(x, ["b", "default"])
    near(y[0], model.wanted(x[0], "b") + 1.5 * model.factors("b").scaling)
    near(y[1], model.wanted(x[1], "default"))


@each_own
@torch.no_grad()
def test_rows_repeated_for_beams(way: str) -> None:
    model, x = made(way, "plain", ("default", "b")), tokens(6, 3)
    y = model.by_row(x, ["b", None])
    for row, name in enumerate(["b", "b", "b", None, None, None]):
        near(y[row], model.wanted(x[row], name))


@each_way
@pytest.mark.parametrize("shape", [(3, 2), (4,), (1, 5)])
@torch.no_grad()
def test_another_number_of_rows_is_refused(way: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"batch of 2 rows|adapter_names"):
        made(way, "plain", ("default", "b")).by_row(tokens(*shape), ["b", None])


@each_way
def test_rows_of_dora_are_refused(way: str) -> None:
    model = Model(way, ("default", "b"), method="dora").eval()
    with pytest.raises(ValueError, match=r"LoRA layers|DoRA"):
        model.by_row(tokens(2, 2), ["b", None])


@pytest.mark.parametrize("way", ["PEFT", "accelerated", "dense", "nf4"])
@torch.no_grad()
def test_beams_of_a_language_model(way: str) -> None:
    """One prompt an adapter, three beams each: the tokens that each prompt gets with its adapter alone."""
    model = tiny_model().eval()
    prompts = ids(2, 6)
    if way in ("PEFT", "accelerated"):
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, config).eval()
        model.add_adapter("b", config)
        if way == "accelerated":
            lorafam.accelerate(model)
    else:
        settings = lorafam.AdapterConfig(
            r=4, target_modules=["q_proj", "v_proj"], quantize="nf4" if way == "nf4" else None
        )
        lorafam.adapt(model, settings)
        lorafam.add_adapter(model, "b")
        torch.manual_seed(3)
        for layer in adapter_layers(model).values():
            for adapter in layer.adapters.values():
                adapter.B.normal_()
    options = {"max_new_tokens": 5, "num_beams": 3, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = []
    for row, name in enumerate(["default", "b"]):
        model.set_adapter(name) if way in ("PEFT", "accelerated") else lorafam.set_adapter(model, name)
        alone.append(model.generate(input_ids=prompts[row : row + 1], **options)[0])
    if way in ("PEFT", "accelerated"):
        both = model.generate(input_ids=prompts, adapter_names=["default", "b"], **options)
    else:
        with lorafam.adapters_by_row(model, ["default", "b"]):
            both = model.generate(input_ids=prompts, **options)
    assert torch.equal(both, torch.stack(alone))


@each_own
@torch.no_grad()
def test_rows_of_an_embedding(way: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(20, 8))
    lorafam.adapt(net, lorafam.AdapterConfig(r=2, target_modules=["0"]))
    lorafam.add_adapter(net, "b")
    for adapter in net[0].adapters.values():
        adapter.A.normal_()
    ids = torch.randint(0, 20, (3, 5))
    wanted = [net[0].base_layer(ids[0])]
    for row, name in ((1, "default"), (2, "b")):
        lorafam.set_adapter(net, name)
        wanted.append(net(ids[row]))
    with lorafam.adapters_by_row(net, [None, "default", "b"]):
        torch.testing.assert_close(net(ids), torch.stack(wanted))


@each_way
@each_base
def test_a_trained_base_trains(way: str, base: str) -> None:
    if way == "nf4":
        pytest.skip("a 4-bit weight has no gradient")
    model, x = made(way, base), tokens(5)
    model.base.weight.requires_grad_()
    y = model(x)
    near(y, model.wanted(x))
    y.sum().backward()
    near(model.base.weight.grad, x.double().sum(0).expand(48, -1))
