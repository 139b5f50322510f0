"""AdaLoRA's files: an α of 0, which PEFT takes for the rank, and the kept ranks of the adapter that is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model.eval()(tokens()).logits


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0, 3, 4])
def test_pefts_alpha(alpha: int, tmp_path: Path) -> None:
    config = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], total_step=10, tinit=1, tfinal=2
    )
    theirs = get_peft_model(tiny_model(), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    theirs.save_pretrained(tmp_path)
    close(logits(lorafam.load_adapter(tiny_model(), tmp_path)), logits(theirs))


def test_an_alpha_that_peft_would_read_otherwise_is_not_written(tmp_path: Path) -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(method="adalora", r=4, alpha=0))
    with pytest.raises(ValueError, match="lora_alpha of 0 as init_r"):
        lorafam.save_adapter(model, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_kept_ranks_are_those_of_the_adapter_that_is_saved(tmp_path: Path) -> None:
    config = AdapterConfig(method="adalora", r=4, alpha=8, target_modules=["q_proj"])
    model = lorafam.adapt(tiny_model(), config)
    disturb(model, 1)
    lorafam.add_adapter(model, "other", config)
    for layer in adapter_layers(model).values():
        adapter = layer.adapters["other"]
        with torch.no_grad():
            adapter.E[1] = 0
            adapter.B.normal_()
        adapter.kept_ranks = [True, False, True, True]
    lorafam.save_adapter(model, tmp_path / "default", "default")
    lorafam.save_adapter(model, tmp_path / "other", "other")
    patterns = [
        json.loads((tmp_path / name / "adapter_config.json").read_text())["rank_pattern"]
        for name in ("default", "other")
    ]
    assert patterns[0] is None
    assert set(map(tuple, patterns[1].values())) == {(True, False, True, True)}
    for name in ("default", "other"):
        lorafam.set_adapter(model, name)
        close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / name)), logits(model))
