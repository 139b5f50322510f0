"""Adapters saved by lorafam load into plain PEFT with the same logits, and the other way round."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens

CONFIGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora-rslora": {"rslora": True},
    "lora-bias": {"bias": True},
    "lora-patterns": {"rank_pattern": {"q_proj": 3, "layers.1.mlp.up_proj": 7}, "alpha_pattern": {"v_proj": 5}},
    "lora-some": {"target_modules": ["q_proj", "down_proj"]},
    "lora-expression": {"target_modules": r".*layers\.1\..*(q|v)_proj"},
    "dora": {"method": "dora"},
    "adalora": {"method": "adalora"},
}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(tokens()).logits


def adapted(name: str) -> torch.nn.Module:
    model = lorafam.adapt(tiny_model(), AdapterConfig(r=4, alpha=8, **CONFIGS[name]))
    disturb(model)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_loads_into_peft(name: str, tmp_path: Path) -> None:
    model = adapted(name)
    lorafam.save_adapter(model, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        loaded = PeftModel.from_pretrained(tiny_model(), tmp_path)
    assert not [str(warning.message) for warning in caught if "key" in str(warning.message)]
    close(logits(loaded), logits(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]


@pytest.mark.parametrize("name", CONFIGS)
def test_ours_loads_into_ours(name: str, tmp_path: Path) -> None:
    model = adapted(name)
    lorafam.save_adapter(model, tmp_path)
    again = lorafam.load_adapter(tiny_model(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    prepared = lorafam.adapt(tiny_model(), AdapterConfig(r=4, alpha=8, **CONFIGS[name]))
    assert torch.equal(logits(lorafam.load_adapter(prepared, tmp_path)), logits(model))
    (tmp_path / "again").mkdir()
    lorafam.save_adapter(again, tmp_path / "again")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if name == "lora-expression" and file == "adapter_config.json":
            continue
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


@pytest.mark.parametrize("name", ["lora", "lora-rslora", "lora-bias", "dora", "adalora"])
def test_peft_loads_into_ours(name: str, tmp_path: Path) -> None:
    targets = ["q_proj", "k_proj", "up_proj"]
    if name == "adalora":
        config = AdaLoraConfig(init_r=4, target_r=2, lora_alpha=8, total_step=10, target_modules=targets)
    else:
        config = LoraConfig(
            r=4,
            lora_alpha=8,
            target_modules=targets,
            use_dora=name == "dora",
            use_rslora=name == "lora-rslora",
            lora_bias=name == "lora-bias",
        )
    theirs = get_peft_model(tiny_model(), config)
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    ours = lorafam.load_adapter(tiny_model(), tmp_path)
    close(logits(ours), logits(theirs))


def test_pruned_adalora_both_ways(tmp_path: Path) -> None:
    model = adapted("adalora")
    for index, layer in enumerate(adapter_layers(model).values()):
        kept = [rank < index % 5 for rank in range(4)]
        layer.active.kept_ranks = kept
        with torch.no_grad():
            layer.E[~torch.tensor(kept)] = 0
    lorafam.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path)
    close(logits(theirs), logits(model))
    ours = lorafam.load_adapter(tiny_model(), tmp_path)
    close(logits(ours), logits(model))
    again = tmp_path / "again"
    lorafam.save_adapter(ours, again)
    close(logits(lorafam.load_adapter(tiny_model(), again)), logits(model))
    theirs.save_pretrained(tmp_path / "theirs")
    close(logits(lorafam.load_adapter(tiny_model(), tmp_path / "theirs")), logits(model))


def test_quantised_model_takes_an_adapter(tmp_path: Path) -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(r=4, quantize="nf4", method="dora"))
    disturb(model)
    lorafam.save_adapter(model, tmp_path)
    other = lorafam.adapt(tiny_model(), AdapterConfig(r=4, quantize="nf4", method="dora"))
    assert torch.equal(logits(lorafam.load_adapter(other, tmp_path)), logits(model))


def damage(folder: Path, what: str) -> None:
    config, tensors = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    values = json.loads(config.read_text())
    if what == "no tensors":
        tensors.unlink()
    elif what == "cut tensors":
        tensors.write_bytes(tensors.read_bytes()[:-100])
    elif what == "no config":
        config.unlink()
    elif what == "broken config":
        config.write_text("{")
    elif what == "other rank":
        config.write_text(json.dumps({**values, "r": 5}))
    elif what == "other method":
        config.write_text(json.dumps({**values, "use_dora": True}))
    elif what == "other targets":
        config.write_text(json.dumps({**values, "target_modules": ["q_proj"]}))
    elif what == "other kind":
        config.write_text(json.dumps({**values, "peft_type": "IA3"}))


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("no tensors", FileNotFoundError, "has no adapter_model.safetensors"),
        ("cut tensors", ValueError, "adapter_model.safetensors: damaged"),
        ("no config", FileNotFoundError, "has no adapter_config.json"),
        ("broken config", ValueError, "adapter_config.json: damaged"),
        ("other rank", ValueError, r"lora_A.weight' has shape \[4, 32\], expected \[5, 32\]"),
        ("other method", ValueError, "lacks .*lora_magnitude_vector"),
        ("other targets", ValueError, "which the model has no place for"),
        ("other kind", ValueError, "expected peft_type ADALORA or LORA or VERA, got 'IA3'"),
    ],
)
def test_damaged_files(what: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    lorafam.save_adapter(adapted("lora"), tmp_path)
    damage(tmp_path, what)
    model = tiny_model()
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(error, match=message):
        lorafam.load_adapter(model, tmp_path)
    assert {name: type(module) for name, module in model.named_modules()} == before


def test_saving_a_bare_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no adapters"):
        lorafam.save_adapter(tiny_model(), tmp_path)
