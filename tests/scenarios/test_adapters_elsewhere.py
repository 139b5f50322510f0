"""Several adapters of a model, each on modules of its own choice: switched, combined, saved, removed, as in PEFT."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig, NF4Linear
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens
from tests.scenarios.files import by_peft, close, logits

FIRST = {"r": 4, "target_modules": ["q_proj"]}
# the second one's
ELSEWHERE: dict[str, dict[str, Any]] = {
    "other modules": {"r": 3, "target_modules": ["v_proj", "down_proj"]},
    "some of them": {"r": 3, "target_modules": ["layers.1.self_attn.q_proj"]},
    "more of them": {"r": 3, "target_modules": ["q_proj", "k_proj"]},
    "by expression": {"r": 3, "target_modules": r".*\.0\..*(k|q)_proj"},
    "all linear": {"r": 3, "target_modules": "all-linear"},
    "the embeddings": {"r": 3, "target_modules": ["embed_tokens", "q_proj"]},
    "the head": {"r": 3, "target_modules": ["lm_head"]},
    "with a module whole": {"r": 3, "target_modules": ["v_proj"], "modules_to_save": ["norm"]},
}
each = pytest.mark.parametrize("name", ELSEWHERE)


def two(name: str, quantize: str | None = None, method: str = "lora") -> nn.Module:
    model = lorafam.adapt(tiny_model(), AdapterConfig(**FIRST, quantize=quantize, method=method))
    disturb(model, 1)
    lorafam.add_adapter(model, "b", AdapterConfig(**ELSEWHERE[name], method=method))
    lorafam.set_adapter(model, "b")
    disturb(model, 2)
    return model


def peft_paths(name: str) -> set[str]:
    theirs = get_peft_model(tiny_model(), LoraConfig(**ELSEWHERE[name])).base_model.model
    return {path for path, module in theirs.named_modules() if hasattr(module, "lora_A")}


@pytest.mark.parametrize("quantize", [None, "nf4"])
@each
def test_switched_and_saved_each_for_itself(name: str, quantize: str | None, tmp_path: Path) -> None:
    model = two(name, quantize)
    layers = adapter_layers(model)
    assert {path for path, layer in layers.items() if "b" in layer.adapters} == peft_paths(name)
    out = {"b": logits(model)}
    trainable = {path for path, p in model.named_parameters() if p.requires_grad}
    assert trainable == {path for path in trainable if "adapters.b." in path or "copies.b." in path} != set()
    lorafam.set_adapter(model, "default")
    out["default"] = logits(model)
    assert {
        path for path, p in model.named_parameters() if p.requires_grad and "adapters.default." not in path
    } == set()
    for one in out:
        lorafam.save_adapter(model, tmp_path / one, one)
        if quantize is None:
            close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / one)), out[one])
        base = tiny_model()
        if quantize is not None:
            for path, module in base.named_modules():
                if type(module) is nn.Linear and path != "lm_head":
                    base.set_submodule(path, NF4Linear.from_linear(module))
        close(logits(lorafam.load_adapter(base, tmp_path / one)), out[one])
    if quantize is None:
        # both beside each other, whichever comes first
        again = lorafam.load_adapter(lorafam.load_adapter(tiny_model(), tmp_path / "b", "b"), tmp_path / "default", "c")
        theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "b", adapter_name="b")
        theirs.load_adapter(tmp_path / "default", "c")
        for one in ("b", "c"):
            lorafam.set_adapter(again, one)
            theirs.set_adapter(one)
            close(logits(again), logits(theirs))


@each
def test_an_adapter_that_is_away_leaves_the_base(name: str) -> None:
    model = two(name)
    with lorafam.disabled(model):
        base = logits(model)
    close(base, logits(tiny_model()))
    b = logits(model)
    lorafam.set_adapter(model, "default")
    first = logits(model)
    lorafam.delete_adapter(model, "b")
    assert torch.equal(logits(model), first)
    plain = lorafam.adapt(tiny_model(), AdapterConfig(**FIRST))
    assert {n: type(m) for n, m in model.named_modules()} == {n: type(m) for n, m in plain.named_modules()}
    assert not torch.allclose(b, first, atol=1e-3)


@each
def test_the_active_one_is_merged(name: str) -> None:
    for active in ("b", "default"):
        model = two(name)
        lorafam.set_adapter(model, active)
        out = logits(model)
        names = {path for path, layer in adapter_layers(model).items() if active in layer.adapters}
        assert set(lorafam.merge_and_unload(model)) == names
        close(logits(model), out)
        assert not adapter_layers(model)


@pytest.mark.parametrize("name", ["other modules", "some of them", "the embeddings", "the head"])
def test_rows_choose(name: str) -> None:
    model = two(name)
    batch = tokens(rows=3)
    model.eval()
    with torch.no_grad():
        b = model(batch).logits
        lorafam.set_adapter(model, "default")
        first = model(batch).logits
        with lorafam.adapters_by_row(model, ["b", None, "default"]):
            mixed = model(batch).logits
        close(mixed[0], b[0])
        close(mixed[1], tiny_model().eval()(batch).logits[1])
        close(mixed[2], first[2])


@pytest.mark.parametrize("how", ["cat", "svd"])
@pytest.mark.parametrize("name", ["other modules", "more of them", "the embeddings"])
def test_combined_as_in_peft(name: str, how: str, tmp_path: Path) -> None:
    model = two(name)
    theirs: Any = None
    for one in ("default", "b"):
        lorafam.save_adapter(model, tmp_path / one, one)
        if theirs is None:
            theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / one)
        else:
            theirs.load_adapter(tmp_path / one, one)
    theirs.add_weighted_adapter(["default", "b"], [0.7, -0.4], "new", combination_type=how)
    theirs.set_adapter("new")
    lorafam.combine_adapters(model, ["default", "b"], [0.7, -0.4], "new", how)
    lorafam.set_adapter(model, "new")
    close(logits(model), logits(theirs))


def test_other_methods_on_other_modules(tmp_path: Path) -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(**FIRST))
    disturb(model)
    lorafam.add_adapter(model, "b", AdapterConfig(r=2, method="dora", target_modules=["v_proj"]))
    lorafam.set_adapter(model, "b")
    disturb(model, 2)
    lorafam.save_adapter(model, tmp_path)
    close(by_peft(tmp_path, tiny_model()), logits(model))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another method": ({"method": "adalora", "target_modules": ["q_proj"]}, "expected the method 'lora'"),
    "starts from the weight": ({"init": "pissa", "target_modules": ["v_proj"]}, "init: 'pissa' changes the base"),
    "quantises": ({"quantize": "nf4"}, "quantize: expected None for a further adapter"),
    "trains biases": ({"base_bias": "all"}, "base_bias: expected 'none'"),
    "an adapted module whole": ({"target_modules": ["v_proj"], "modules_to_save": ["q_proj"]}, "is adapted already"),
    "no such module": ({"target_modules": ["query"]}, "no module is called 'query'"),
    "AdaLoRA of a table": ({"method": "adalora", "target_modules": ["embed_tokens"]}, "is an embedding"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_changes_nothing(what: str) -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(**FIRST))
    settings, message = REFUSED[what]
    before = [(name, id(module)) for name, module in model.named_modules()]
    trainable = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match=message):
        lorafam.add_adapter(model, "b", AdapterConfig(r=2, **settings))
    assert [(name, id(module)) for name, module in model.named_modules()] == before
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == trainable


def test_a_merged_layer_stops_switching_before_anything() -> None:
    model = two("other modules")
    next(layer for layer in adapter_layers(model).values() if layer.has_active).merge()
    before = copy.deepcopy([layer.active_adapter for layer in adapter_layers(model).values()])
    with pytest.raises(RuntimeError, match="is merged, unmerge it first"):
        lorafam.set_adapter(model, "default")
    assert [layer.active_adapter for layer in adapter_layers(model).values()] == before


def test_a_layer_without_the_active_adapter_says_so() -> None:
    model = two("other modules")
    idle = adapter_layers(model)["model.layers.0.self_attn.q_proj"]
    assert "isn't on this layer" in lorafam.explain(idle, 4).reason
    with pytest.raises(RuntimeError, match="no adapter 'b'"):
        idle.merge()
