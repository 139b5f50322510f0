"""What else happens to a merged layer: its weight is another module's too, states are loaded, it is merged again."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb
from tests.scenarios.files import close, llama, logits
from tests.scenarios.models import WAYS, K, Model, N, each_own, each_way, near, tokens

METHODS = ("lora", "dora")


def tied_head(way: str, method: str, targets: list[str]) -> Any:
    if way in WAYS[:2]:
        config = LoraConfig(r=4, target_modules=targets, use_dora=method == "dora")
        peft: Any = get_peft_model(llama(tied=True), config)
        disturb(peft)
        if way == "accelerated":
            lorafam.accelerate(peft)
        return peft
    quantize = "nf4" if way == "nf4" else None
    model = lorafam.adapt(llama(tied=True), AdapterConfig(method, r=4, target_modules=targets, quantize=quantize))
    disturb(model)
    return model


@each_way
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:quantize=", "ignore:Model with `tie_word_embeddings")
def test_a_merged_tied_head_leaves_the_table(way: str, method: str) -> None:
    """PEFT's merging changes the embeddings, and with them all that comes of them."""
    model = tied_head(way, method, ["lm_head"])
    before = logits(model)
    table = model.get_input_embeddings().weight
    values = table.clone()
    model.get_output_embeddings().merge()
    if way in WAYS[:2]:
        assert not torch.equal(table, values)
        assert not torch.allclose(logits(model), before, atol=1e-3)
        return
    close(logits(model), before)
    assert model.get_input_embeddings().weight is table
    assert torch.equal(table, values)
    model.lm_head.unmerge()
    assert torch.equal(logits(model), before)
    assert model.lm_head.base_layer.weight is table


def test_a_merged_tied_parameter_leaves_the_table() -> None:
    settings = {"target_modules": [], "target_parameters": ["lm_head.weight"]}
    model: Any = lorafam.adapt(llama(tied=True), AdapterConfig(r=4, **settings))
    disturb(model)
    before, table = logits(model), model.get_input_embeddings().weight
    values = table.clone()
    model.lm_head.merge()
    close(logits(model), before)
    assert torch.equal(table, values)
    with lorafam.disabled(model):
        close(logits(model), logits(llama(tied=True)))
    close(logits(model), before)
    model.lm_head.unmerge()
    assert torch.equal(logits(model), before)
    assert model.lm_head.base_layer.weight is table


MOVES: dict[str, Callable[[Model], object]] = {
    "double": lambda model: model.net.double(),
    "copied": lambda model: setattr(model, "net", copy.deepcopy(model.net)),
    "pickled": lambda model: setattr(model, "net", pickle.loads(pickle.dumps(model.net))),
}


@each_own
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("inside", ["merged", "disabled"])
def test_moved_while_merged(way: str, method: str, move: str, inside: str) -> None:
    model = Model(way, method=method).eval()
    x = tokens(5)
    wanted, base = model.wanted(x), model.wanted(x, None)
    model.merge()
    merged = model(x).detach().double()
    if way == "dense":
        near(merged, wanted)
    model.layer.enabled = inside == "merged"
    MOVES[move](model)
    layer = model.net[0]
    x = x.double() if move == "double" else x
    near(model(x), merged if inside == "merged" else base)
    layer.enabled = True
    near(model(x), merged)
    layer.unmerge()
    near(model(x), wanted)


STATES: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "whole": dict,
    "base alone": lambda state: {name: one for name, one in state.items() if "base_layer" in name},
    "adapter alone": lambda state: {name: one for name, one in state.items() if "adapters" in name},
}


@each_own
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("which", STATES)
def test_a_state_for_an_unmerged_model_is_not_loaded_into_a_merged_one(way: str, method: str, which: str) -> None:
    """PEFT takes it: its merged layers have the bare base's weights then, or another adapter's."""
    model = Model(way, method=method).eval()
    x = tokens(5)
    state = copy.deepcopy(model.net.state_dict())
    for name, tensor in state.items():
        if "adapters" in name:
            tensor.mul_(1.5)
    model.merge()
    merged, own = model(x), copy.deepcopy(model.net.state_dict())
    with pytest.raises(ValueError, match=r"state_dict: has another '0\..*' than the layer, which is merged: unmerge"):
        model.net.load_state_dict(STATES[which](state), strict=False)
    assert all(torch.equal(tensor, own[name]) for name, tensor in model.net.state_dict().items())
    # its own is no other
    model.net.load_state_dict(own)
    assert torch.equal(model(x), merged)
    model.layer.unmerge()
    model.net.load_state_dict(state)
    near(model(x), model.wanted(x))


def test_nothing_of_a_state_is_loaded_before_it_is_refused() -> None:
    model = lorafam.adapt(llama(), AdapterConfig(r=4, target_modules=["q_proj"]))
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    list(adapter_layers(model).values())[-1].merge()
    before = logits(model)
    with pytest.raises(ValueError, match="which is merged: unmerge it first"):
        model.load_state_dict(state)
    assert torch.equal(logits(model), before)


def test_a_state_is_looked_at_once_by_model_and_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lorafam.adapt(llama(), AdapterConfig(r=4, target_modules=["q_proj", "v_proj"]))
    layers = adapter_layers(model)
    for layer in layers.values():
        layer.merge()
    state, looked = copy.deepcopy(model.state_dict()), list[str]()
    for path, layer in layers.items():
        whole = layer.state_dict
        monkeypatch.setattr(layer, "state_dict", lambda path=path, whole=whole, **k: looked.append(path) or whole(**k))
    model.load_state_dict(state)
    assert looked == list(layers)
    # each load of its own
    model.load_state_dict(state)
    assert looked == 2 * list(layers)
    path, layer = next(iter(layers.items()))
    with pytest.raises(ValueError, match="which is merged"):
        model.get_submodule(path).load_state_dict({name: tensor + 1 for name, tensor in layer.state_dict().items()})


@each_way
@pytest.mark.parametrize("method", METHODS)
def test_layers_that_are_merged_are_merged_with_the_model(way: str, method: str) -> None:
    model = Model(way, method=method).eval()
    x = tokens(5)
    wanted = model.wanted(x)
    model.merge()
    merged = model(x)
    if model.peft:
        net = model.net.merge_and_unload()
    else:
        lorafam.merge_and_unload(model.net)
        net = model.net
    near(net(x), wanted, 0.1 if way == "nf4" else 2e-5)
    near(net(x), merged.double())
    assert not any(hasattr(module, "base_layer") for module in net.modules())


@each_own
def test_what_was_merged_is_merged_where_the_model_can_not_be(way: str) -> None:
    model: Any = lorafam.adapt(llama(), AdapterConfig(r=4, quantize="nf4" if way == "nf4" else None))
    disturb(model)
    layers = list(adapter_layers(model).values())
    layers[0].merge()
    with torch.no_grad():
        layers[-1].B.fill_(float("nan"))
    hidden = model.model.layers[0].self_attn.q_proj
    before = hidden(torch.ones(1, 32))
    with pytest.raises(ValueError, match="NaN or inf"):
        lorafam.merge_and_unload(model)
    assert [layer.merged for layer in layers] == [layer is layers[0] for layer in layers]
    assert torch.equal(hidden(torch.ones(1, 32)), before)


def parametrised(how: str) -> nn.Module:
    base = nn.Linear(K, N)
    if how == "weight_norm":
        nn.utils.parametrizations.weight_norm(base)
    elif how == "weight_norm by a hook":
        nn.utils.weight_norm(base)
    else:
        weight = base.weight.detach()
        del base._parameters["weight"]
        base.weight = weight  # type: ignore[assignment]
    return nn.ModuleDict({"one": base})


@pytest.mark.parametrize("how", ["weight_norm", "weight_norm by a hook", "no parameter"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_is_formed_anew_is_not_merged(how: str, method: str) -> None:
    """PEFT adds to a copy that the next forward forgets: the merged layer is its base."""
    model = lorafam.adapt(parametrised(how), AdapterConfig(method, r=4, target_modules=["one"])).eval()
    disturb(model)
    layer: Any = model["one"]  # type: ignore[index]
    x = tokens(5)
    before = layer(x)
    with pytest.raises(TypeError, match=r"merge: the weight of a .*Linear can't be replaced"):
        layer.merge()
    assert torch.equal(layer(x), before)


class Twice(nn.Module):
    """One layer at two places; the second has no adapter, as in PEFT, which goes by the first place's name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Linear(K, K)
        self.again = nn.ModuleList([self.one])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.one(x) - 2 * self.again[0](x)


@each_way
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:quantize=")
def test_a_layer_at_two_places_is_merged_at_its_own(way: str, method: str) -> None:
    """PEFT's merging changes the other place too."""
    if way in WAYS[:2]:
        model: Any = get_peft_model(Twice(), LoraConfig(r=4, target_modules=["one"], use_dora=method == "dora"))
        layer = model.base_model.model.one
        if way == "accelerated":
            lorafam.accelerate(model)
    else:
        quantize = "nf4" if way == "nf4" else None
        model = lorafam.adapt(Twice(), AdapterConfig(method, r=4, target_modules=["one"], quantize=quantize))
        layer = model.one
    disturb(model)
    x = tokens(5)
    wanted = layer(x) - 2 * Twice().one(x)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    layer.merge()
    if way in WAYS[:2]:
        assert not torch.allclose(model(x), wanted, atol=1e-2)
        return
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    layer.unmerge()
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)
    lorafam.merge_and_unload(model)
    torch.testing.assert_close(model(x), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("into", ["bf16", "fp16", "fp32", "nf4"])
def test_a_table_is_merged_into_the_models_dtype(method: str, into: str) -> None:
    model: Any = lorafam.adapt(llama(), AdapterConfig(method, r=4, target_modules=["embed_tokens", "q_proj"]))
    disturb(model)
    before = logits(model)
    lorafam.merge_and_unload(model, into=into)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(into, torch.float32)
    assert model.model.embed_tokens.weight.dtype == dtype
    assert (logits(model).float() - before).norm() < 0.15 * before.norm()


@each_own
@pytest.mark.parametrize("into", ["bf16", "fp32"])
@pytest.mark.parametrize("inside", ["merged", "disabled"])
def test_converted_while_merged_into_another_format(way: str, into: str, inside: str) -> None:
    model = Model(way).eval()
    x = tokens(5)
    wanted, base = model.wanted(x), model.wanted(x, None)
    model.layer.merge(into=into)
    model.layer.enabled = inside == "merged"
    model.net.double()
    near(model(x.double()), wanted if inside == "merged" else base, 0.02)
    model.layer.enabled = True
    near(model(x.double()), wanted, 0.02)
    model.layer.unmerge()
    near(model(x.double()), wanted)


@pytest.mark.parametrize("inside", ["merged", "disabled"])
@pytest.mark.parametrize("into", ["same", "bf16"])
def test_a_merged_parameter_is_converted(into: str, inside: str) -> None:
    def made() -> Any:
        settings: dict[str, Any] = {"target_modules": [], "target_parameters": ["one.weight"]}
        model = lorafam.adapt(Twice(), AdapterConfig(r=4, **settings))
        disturb(model)
        return model

    model, x = made(), tokens(5)
    wanted, base = model(x).double(), Twice()(x).double()
    model.one.merge(into=into)
    model.one.enabled = inside == "merged"
    model.double()
    near(model(x.double()), wanted if inside == "merged" else base, 0.02)
    model.one.enabled = True
    near(model(x.double()), wanted, 0.02)
    model.one.unmerge()
    near(model(x.double()), wanted)
