"""A model stays as it was when something is refused or fails while it is changed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lorafam
from lorafam import AdapterConfig, NF4Linear
from lorafam.methods import AdapterLayer
from tests.model.tiny import tiny_model, tokens

adapting = importlib.import_module("lorafam.model.adapt")


def state(model: nn.Module) -> list[Any]:
    return [
        [(name, id(module)) for name, module in model.named_modules()],
        [(name, id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()],
    ]


def same(model: nn.Module, before: list[Any]) -> None:
    modules, parameters = state(model)
    assert modules == before[0]
    for now, then in zip(parameters, before[1], strict=True):
        assert now[:3] == then[:3]
        assert torch.equal(now[3].nan_to_num(5.0), then[3].nan_to_num(5.0))
    assert not hasattr(model, "lorafam_config")


NEEDS_WEIGHTS = [
    {"quantize": "nf4"},
    {"quantize": "fp4", "method": "dora"},
    {"init": "pissa"},
    {"init": "olora", "quantize": "nf4"},
    {"init": "pissa_niter_4", "method": "dora"},
    {"init": "loftq", "quantize": "nf4"},
]


@pytest.mark.parametrize("settings", NEEDS_WEIGHTS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named(settings: dict[str, Any], value: float) -> None:
    model = tiny_model()
    model.model.layers[1].mlp.up_proj.weight.data[3, 5] = value
    before = state(model)
    with pytest.raises(ValueError, match=r"the weight of 'model\.layers\.1\.mlp\.up_proj' has NaN or inf"):
        lorafam.adapt(model, AdapterConfig(r=4, **settings))
    same(model, before)


@pytest.mark.parametrize("settings", [*NEEDS_WEIGHTS, {}])
@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_a_failure_halfway_leaves_nothing(
    settings: dict[str, Any], error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    before, calls = state(model), [0]
    real = adapting.new_adapter_layer

    def failing(*args: Any) -> AdapterLayer:
        calls[0] += 1
        if calls[0] == 4:
            raise error
        return real(*args)

    monkeypatch.setattr(adapting, "new_adapter_layer", failing)
    with pytest.raises(type(error)):
        lorafam.adapt(model, AdapterConfig(r=4, **settings))
    same(model, before)
    monkeypatch.setattr(adapting, "new_adapter_layer", real)
    out = model(tokens()).logits
    lorafam.adapt(model, AdapterConfig(r=4))
    torch.testing.assert_close(model(tokens()).logits, out)


@pytest.mark.parametrize("init", ["pissa", "olora", "pissa_niter_4"])
def test_a_tied_head_does_not_lose_a_part(init: str) -> None:
    model = tiny_model()
    model.lm_head.weight = model.model.embed_tokens.weight
    before = state(model)
    with pytest.raises(ValueError, match=r"'lm_head', which is tied to 'model\.embed_tokens\.weight'"):
        lorafam.adapt(model, AdapterConfig(r=4, init=init, target_modules=["q_proj", "lm_head"]))
    same(model, before)
    lorafam.adapt(model, AdapterConfig(r=4, target_modules=["q_proj", "lm_head"]))


@pytest.mark.parametrize("settings", NEEDS_WEIGHTS)
def test_weights_that_are_not_there_yet(settings: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64))
    with pytest.raises(ValueError, match="'0' has no weight yet"):
        lorafam.adapt(model, AdapterConfig(r=4, target_modules=["0"], **settings))


METHODS = ["lora", "dora", "adalora"]


@pytest.mark.parametrize("way", ["assign", "to_empty"])
@pytest.mark.parametrize("method", METHODS)
def test_made_on_the_meta_device(method: str, way: str) -> None:
    config = AdapterConfig(r=4, target_modules=["0"], method=method)
    real = lorafam.adapt(nn.Sequential(nn.Linear(8, 8)), config).eval()
    with torch.no_grad():
        for parameter in real.parameters():
            parameter.normal_()
    with torch.device("meta"):
        model = lorafam.adapt(nn.Sequential(nn.Linear(8, 8)), config).eval()
    if way == "to_empty":
        model.to_empty(device="cpu")
    model.load_state_dict(real.state_dict(), assign=way == "assign")
    x = torch.randn(2, 8)
    torch.testing.assert_close(model(x), real(x))
    torch.testing.assert_close(model.to("cpu").double()(x.double()).float(), real(x), rtol=1e-4, atol=1e-5)


CHANGES: dict[str, Callable[[nn.Module, Path], object]] = {
    "add": lambda model, _: lorafam.add_adapter(model, "b", AdapterConfig(r=4)),
    "load": lambda model, folder: lorafam.load_adapter(model, folder, "b"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_an_adapter_added_halfway_is_taken_away(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(r=4))
    lorafam.save_adapter(model, tmp_path)
    layer = model.model.layers[1].self_attn.v_proj
    monkeypatch.setattr(layer, "put_adapter", lambda *args: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        CHANGES[what](model, tmp_path)
    assert all(list(one.adapters) == ["default"] for one in lorafam.model.adapter_layers(model).values())


@pytest.mark.parametrize("name", ["", "a.b", "keys", 3, None])
def test_a_name_that_no_adapter_can_have(name: Any) -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(r=4))
    with pytest.raises(ValueError, match="name: expected"):
        lorafam.add_adapter(model, name, AdapterConfig(r=4))


def test_quantised_layers_are_all_or_none() -> None:
    model = tiny_model()
    lorafam.adapt(model, AdapterConfig(r=4, quantize="nf4", target_modules=["q_proj"]))
    assert sum(isinstance(module, NF4Linear) for module in model.modules()) == 14
