"""GPT-2, whose linear layers are Conv1D: adapted, quantised, and its adapters read by PEFT and from PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel

import lorafam
from lorafam import AdapterConfig, NF4Linear
from lorafam.model import adapter_layers
from tests.model.tiny import disturb

TARGETS = ["c_attn", "c_proj", "c_fc"]


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=32)
    return GPT2LMHeadModel(config).eval()


def batch() -> torch.Tensor:
    return torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("method", "init"),
    [("lora", "default"), ("lora", "pissa"), ("dora", "default"), ("dora", "olora"), ("adalora", "default")],
)
def test_peft_reads_it_and_back(method: str, init: str, tmp_path: Path) -> None:
    config = AdapterConfig(method=method, r=4, alpha=6, target_modules=TARGETS, init=init, dora_dropout="input")
    model: Any = lorafam.adapt(gpt2(), config).eval()
    disturb(model)
    expected = model(batch()).logits
    assert not torch.allclose(expected, gpt2()(batch()).logits, atol=1e-3)
    lorafam.save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(gpt2(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(batch()).logits, expected, rtol=1e-4, atol=1e-5)
    ours: Any = lorafam.load_adapter(gpt2(), tmp_path).eval()
    torch.testing.assert_close(ours(batch()).logits, expected, rtol=1e-5, atol=1e-5)
    lorafam.merge_and_unload(ours)
    torch.testing.assert_close(ours(batch()).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_from_peft(dora: bool, tmp_path: Path) -> None:
    theirs: Any = get_peft_model(gpt2(), LoraConfig(r=4, target_modules=TARGETS, fan_in_fan_out=True, use_dora=dora))
    disturb(theirs)
    theirs.eval().save_pretrained(tmp_path)
    ours: Any = lorafam.load_adapter(gpt2(), tmp_path).eval()
    torch.testing.assert_close(ours(batch()).logits, theirs(batch()).logits, rtol=1e-4, atol=1e-5)


def test_quantised_with_everything_else() -> None:
    model: Any = lorafam.adapt(gpt2(), AdapterConfig(quantize="nf4")).eval()
    layers = adapter_layers(model)
    assert len(layers) == 8
    assert all(isinstance(layer.base_layer, NF4Linear) for layer in layers.values())
    before = gpt2()(batch()).logits
    assert (model(batch()).logits - before).norm() < 0.2 * before.norm()
