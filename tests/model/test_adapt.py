"""What `adapt` wraps, quantises and freezes, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lorafam
from lorafam import AdapterConfig, NF4Linear
from lorafam.model import adapter_layers, merge_and_unload
from tests.model.tiny import disturb, tiny_model, tokens


@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("quantize", [None, "nf4", "fp4"])
def test_wraps_every_linear_layer_but_the_head(method: str, quantize: str | None) -> None:
    model = tiny_model()
    plain = model(tokens()).logits
    adapted = lorafam.adapt(model, AdapterConfig(method=method, r=4, quantize=quantize))
    assert adapted is model
    layers = adapter_layers(model)
    assert len(layers) == 2 * 7
    assert type(model.lm_head) is nn.Linear
    base = nn.Linear if quantize is None else NF4Linear
    assert all(type(layer.base_layer) is base for layer in layers.values())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all(".adapters.default." in name for name in trainable)
    if quantize is None:
        torch.testing.assert_close(model(tokens()).logits, plain, rtol=1e-4, atol=1e-5)


def test_quantises_layers_without_an_adapter_too() -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(target_modules=["q_proj"], quantize="nf4"))
    assert len(adapter_layers(model)) == 2
    assert sum(isinstance(module, NF4Linear) for module in model.modules()) == 14


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj", "v_proj"], 4),
        (["layers.0.self_attn.q_proj"], 1),
        (r".*layers\.1\..*proj", 7),
        ("all-linear", 14),
        (["lm_head"], 1),
    ],
)
def test_target_modules(targets: Any, expected: int) -> None:
    assert len(adapter_layers(lorafam.adapt(tiny_model(), AdapterConfig(target_modules=targets)))) == expected


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_prj"], "no module is called 'q_prj'; the model has q_proj"),
        (["q_proj", "nothing"], "no module is called 'nothing'"),
        (["norm"], "can't be adapted"),
    ],
)
def test_unknown_targets_change_nothing(targets: list[str], message: str) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=message):
        lorafam.adapt(model, AdapterConfig(target_modules=targets, quantize="nf4"))
    assert not adapter_layers(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_patterns() -> None:
    config = AdapterConfig(r=4, rank_pattern={"q_proj": 2, r"layers\.1\.mlp\..*": 6}, alpha_pattern={"v_proj": 3.0})
    layers = adapter_layers(lorafam.adapt(tiny_model(), config))
    ranks = {path: layer.A.shape[0] for path, layer in layers.items()}
    assert ranks["model.layers.0.self_attn.q_proj"] == 2
    assert ranks["model.layers.1.mlp.up_proj"] == 6
    assert ranks["model.layers.0.mlp.up_proj"] == 4
    assert layers["model.layers.0.self_attn.v_proj"].active.scaling == 3.0 / 4


def test_adapting_twice_is_refused() -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig())
    with pytest.raises(ValueError, match="it has some already"):
        lorafam.adapt(model, AdapterConfig())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "velora"}, "method: expected one of .*'lora', 'vera', got 'velora'"),
        ({"r": 0}, "r: expected a positive integer, got 0"),
        ({"r": 2.5}, "r: expected a positive integer, got 2.5"),
        ({"dropout": 1}, "dropout: expected a probability"),
        ({"quantize": "int4"}, "quantize: expected one of"),
        ({"block_size": 65}, "block_size: expected one of"),
        ({"target_modules": []}, "target_modules: expected at least one name"),
        ({"method": "adalora", "rslora": True}, "rslora: AdaLoRA has a scaling of its own"),
        ({"method": "dora", "bias": True}, "bias: DoRA has no bias of its own"),
        ({"rank_pattern": {"q_proj": 0}}, r"rank_pattern\['q_proj'\]: expected a positive integer"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**settings)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_merge_and_unload(method: str) -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(method=method, r=4)).eval()
    disturb(model)
    before = model(tokens()).logits
    reports = merge_and_unload(model)
    assert len(reports) == 14
    assert {type(module) for path, module in model.named_modules() if path in reports} == {nn.Linear}
    torch.testing.assert_close(model(tokens()).logits, before, rtol=1e-3, atol=1e-4)
