"""What is multiplied by is what the file says: loading over, saving the active one, patterns, selectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens

CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"r": 4, "alpha": 64},
    "rank": {"r": 6, "alpha": 8},
    "rslora": {"r": 4, "alpha": 8, "rslora": True},
    "alpha_pattern": {"r": 4, "alpha": 8, "alpha_pattern": {"layers.1.self_attn.q_proj": 5, "q_proj": 64}},
    "rank_pattern": {"r": 4, "alpha": 8, "rank_pattern": {"v_proj": 7}},
    "bias": {"r": 4, "alpha": 8, "bias": True},
}
TARGETS = ["q_proj", "v_proj"]


def made(seed: int = 1, **settings: Any) -> nn.Module:
    model = lorafam.adapt(tiny_model(), AdapterConfig(target_modules=TARGETS, **settings))
    disturb(model, seed)
    return model.eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(tokens()).logits


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before", CONFIGS)
@pytest.mark.parametrize("now", CONFIGS)
def test_loading_over_takes_all_from_the_file(now: str, before: str, tmp_path: Path) -> None:
    lorafam.save_adapter(right := made(2, **CONFIGS[now]), tmp_path / "new")
    model = lorafam.load_adapter(made(1, **CONFIGS[before]), tmp_path / "new")
    assert torch.equal(logits(model), logits(right))
    lorafam.save_adapter(model, tmp_path / "again")
    close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "again")), logits(right))


def test_loading_over_keeps_the_optimisers_parameters(tmp_path: Path) -> None:
    lorafam.save_adapter(made(2, r=4, alpha=64), tmp_path)
    model = made(1, r=4)
    before = [id(p) for p in model.parameters()]
    lorafam.load_adapter(model, tmp_path)
    assert [id(p) for p in model.parameters()] == before


@pytest.mark.parametrize("which", CONFIGS)
def test_the_active_adapter_is_saved_with_its_own_settings(which: str, tmp_path: Path) -> None:
    model = made(r=8, alpha=16, bias=which == "bias")
    lorafam.add_adapter(model, "b", AdapterConfig(target_modules=TARGETS, **CONFIGS[which]))
    lorafam.set_adapter(model, "b")
    disturb(model, 3)
    lorafam.save_adapter(model, tmp_path)
    close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path)), logits(model))
    assert torch.equal(logits(lorafam.load_adapter(tiny_model(), tmp_path)), logits(model))


def test_a_scaling_that_was_set_is_saved(tmp_path: Path) -> None:
    model = made(r=4, alpha=8)
    for layer in adapter_layers(model).values():
        layer.active.scaling = 0.75
    lorafam.save_adapter(model, tmp_path)
    close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path)), logits(model))


@pytest.mark.parametrize("keys", [("z_last", ".*proj"), (".*proj", "z_last")])
def test_patterns_keep_their_order(keys: tuple[str, str], tmp_path: Path) -> None:
    values = {"z_last": 2.0, ".*proj": 32.0}
    net = nn.ModuleDict({"z_last": nn.Linear(8, 8), "a_proj": nn.Linear(8, 8)})
    first = keys[0].replace("z_last", "z_last|a_proj")
    config = AdapterConfig(
        r=4, target_modules=["z_last", "a_proj"], alpha_pattern={first: values[keys[0]], keys[1]: values[keys[1]]}
    )
    model = lorafam.adapt(net, config)
    want = {path: layer.active.scaling for path, layer in adapter_layers(model).items()}
    lorafam.save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert list(written["alpha_pattern"]) == list(config.alpha_pattern)
    again = lorafam.load_adapter(nn.ModuleDict({"z_last": nn.Linear(8, 8), "a_proj": nn.Linear(8, 8)}), tmp_path)
    assert {path: layer.active.scaling for path, layer in adapter_layers(again).items()} == want


def test_paths_that_end_others_are_told_apart(tmp_path: Path) -> None:
    def net() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict(
            {"q": nn.Linear(8, 8), "deep": nn.ModuleDict({"q": nn.Linear(8, 8), "k": nn.Linear(8, 8)})}
        )

    model = lorafam.adapt(net(), AdapterConfig(r=4, target_modules=["q", "deep.k"]))
    lorafam.add_adapter(model, "b", AdapterConfig(r=2, alpha_pattern={"^q": 3, "deep.q": 5}, rank_pattern={"^q": 6}))
    lorafam.set_adapter(model, "b")
    lorafam.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(net(), tmp_path).base_model.model
    for path, layer in adapter_layers(model).items():
        assert theirs.get_submodule(path).scaling["default"] == layer.active.scaling, path
    only = lorafam.adapt(net(), AdapterConfig(r=4, target_modules=r"q|deep\.k"))
    lorafam.save_adapter(only, tmp_path)
    assert set(adapter_layers(lorafam.load_adapter(net(), tmp_path))) == {"q", "deep.k"}
    wrapped = PeftModel.from_pretrained(net(), tmp_path).base_model.model
    assert type(wrapped["deep"]["q"]) is nn.Linear


def test_a_pattern_written_by_path_means_that_path_alone(tmp_path: Path) -> None:
    """A dot of an expression is any sign: `a.q` would mean `axq` too."""

    def net() -> nn.ModuleDict:
        torch.manual_seed(0)
        names = {"axq": nn.Linear(8, 8), "bxq": nn.Linear(8, 8), "a+q": nn.Linear(8, 8)}
        return nn.ModuleDict({"a": nn.ModuleDict({"q": nn.Linear(8, 8)}), **names})

    model = lorafam.adapt(net(), AdapterConfig(r=4, target_modules=["a.q", "axq", "bxq", "a+q"]))
    for path, scaling in {"a.q": 5.0, "a+q": 7.0}.items():
        model.get_submodule(path).active.scaling = scaling
    lorafam.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(net(), tmp_path).base_model.model
    again = adapter_layers(lorafam.load_adapter(net(), tmp_path))
    for path, layer in adapter_layers(model).items():
        assert theirs.get_submodule(path).scaling["default"] == layer.active.scaling, path
        assert again[path].active.scaling == layer.active.scaling, path


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_fits_nothing_is_told(setting: str) -> None:
    with pytest.warns(UserWarning, match=f"{setting}: no adapted module is called 'qproj', did you mean 'q_proj'"):
        lorafam.adapt(tiny_model(), AdapterConfig(target_modules=["q_proj"], **{setting: {"qproj": 16}}))


@pytest.mark.parametrize("adapter", [None, "b"])
def test_loading_while_merged_is_refused(adapter: str | None, tmp_path: Path) -> None:
    lorafam.save_adapter(made(2, r=4), tmp_path)
    model = made(1, r=4)
    layer = next(iter(adapter_layers(model).values()))
    layer.merge()
    before = logits(model)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj' is merged"):
        lorafam.load_adapter(model, tmp_path, adapter)
    assert torch.equal(logits(model), before)
    assert list(layer.adapters) == ["default"]


SELECTORS: dict[str, dict[str, Any]] = {
    "exclude": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "exclude by expression": {"exclude_modules": r".*layers\.0\..*"},
    "one layer": {"layers_to_transform": 0},
    "layers": {"layers_to_transform": [1]},
    "pattern": {"layers_to_transform": [0], "layers_pattern": "layers"},
    "patterns": {"layers_to_transform": 1, "layers_pattern": ["h", "layers"]},
    "expression": {"target_modules": r".*\.1\..*(q|v)_proj"},
    "all-linear": {"target_modules": "all-linear"},
}


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_of_a_peft_file(name: str, tmp_path: Path) -> None:
    settings = {"r": 4, "target_modules": TARGETS, "init_lora_weights": False, **SELECTORS[name]}
    theirs = get_peft_model(tiny_model(), LoraConfig(**settings))
    theirs.save_pretrained(tmp_path / "adapter")
    close(logits(lorafam.load_adapter(tiny_model(), tmp_path / "adapter")), logits(theirs))
    tiny_model().save_pretrained(tmp_path / "model")
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    close(logits(type(tiny_model()).from_pretrained(tmp_path / "merged")), logits(theirs))


@pytest.mark.parametrize("name", SELECTORS)
def test_selectors_of_our_own_are_pefts(name: str) -> None:
    settings = {"target_modules": TARGETS, **SELECTORS[name]}
    ours = lorafam.adapt(tiny_model(), AdapterConfig(**settings))
    theirs = get_peft_model(tiny_model(), LoraConfig(**settings)).base_model.model
    assert set(adapter_layers(ours)) == {path for path, module in theirs.named_modules() if hasattr(module, "lora_A")}
