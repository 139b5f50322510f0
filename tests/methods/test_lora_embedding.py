"""LoRA of an embedding: the contract of a layer, and PEFT's results and files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

import lorafam
from lorafam import AdapterConfig, explain
from lorafam.methods import LoraEmbedding
from tests.model.tiny import disturb, tiny_model, tokens

V, D, RANK = 30, 16, 4
TARGETS = ["embed_tokens", "q_proj"]


class ScaledEmbedding(nn.Embedding):
    """As Gemma's: what is looked up is multiplied."""

    embed_scale = 3.0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * self.embed_scale


BASES = {
    "plain": lambda: nn.Embedding(V, D),
    "padded": lambda: nn.Embedding(V, D, padding_idx=2),
    "scaled": lambda: ScaledEmbedding(V, D),
    "bf16": lambda: nn.Embedding(V, D, dtype=torch.bfloat16),
}


def make(base: str = "plain", **settings: Any) -> LoraEmbedding:
    torch.manual_seed(0)
    return LoraEmbedding(BASES[base](), r=RANK, alpha=8, **settings)


def trained(layer: LoraEmbedding) -> LoraEmbedding:
    with torch.no_grad():
        layer.A.normal_(std=0.3)
    return layer


def ids() -> torch.Tensor:
    return torch.randint(0, V, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("base", BASES)
def test_contract(base: str) -> None:
    layer = make(base)
    before = layer.base_layer(ids())
    assert torch.equal(layer(ids()), before)
    trained(layer)
    found = layer(ids())
    assert found.dtype == before.dtype
    assert not torch.allclose(found, before, atol=1e-2)
    table = layer.base_layer.weight.float() + layer.active.scaling * (layer.B @ layer.A).T
    expected = table[ids()] * getattr(layer.base_layer, "embed_scale", 1.0)
    near = {"rtol": 2e-2, "atol": 3e-2} if base == "bf16" else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(found.float(), expected, **near)
    found.float().square().sum().backward()
    for parameter in layer.active.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0
    assert layer.base_layer.weight.grad is None
    layer.enabled = False
    assert torch.equal(layer(ids()), before)
    layer.enabled = True
    again = copy.deepcopy(layer)
    assert torch.equal(again(ids()), found)
    assert explain(layer, 3).reason == "a look-up and a small product: nothing to fuse"


@pytest.mark.parametrize("base", ["plain", "scaled"])
def test_merge_and_back(base: str) -> None:
    layer = trained(make(base))
    before, table = layer(ids()), layer.base_layer.weight.detach().clone()
    report = layer.merge()
    assert report.relative_weight_error < 1e-6
    torch.testing.assert_close(layer(ids()), before, rtol=1e-4, atol=1e-5)
    layer.unmerge()
    assert torch.equal(layer.base_layer.weight, table)
    assert torch.equal(layer(ids()), before)


def test_a_tied_head_keeps_its_weight() -> None:
    base = nn.Embedding(V, D)
    head = nn.Linear(D, V, bias=False)
    head.weight = base.weight
    before = head.weight.detach().clone()
    trained(LoraEmbedding(base, r=RANK)).merge()
    assert torch.equal(head.weight, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rslora", [False, True])
def test_files_both_ways(rslora: bool, tmp_path: Path) -> None:
    config = AdapterConfig(r=RANK, alpha=6, target_modules=TARGETS, rslora=rslora)
    ours: Any = lorafam.adapt(tiny_model(), config).eval()
    disturb(ours)
    expected = ours(tokens()).logits
    lorafam.save_adapter(ours, tmp_path / "ours")
    theirs: Any = PeftModel.from_pretrained(tiny_model(), str(tmp_path / "ours")).eval()
    torch.testing.assert_close(theirs(tokens()).logits, expected, rtol=1e-4, atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    again: Any = lorafam.load_adapter(tiny_model(), tmp_path / "theirs").eval()
    torch.testing.assert_close(again(tokens()).logits, expected, rtol=1e-5, atol=1e-5)
    other = tiny_model(seed=1)
    if (tmp_path / "theirs" / "adapter_model.safetensors").stat().st_size > 20_000:
        with pytest.raises(ValueError, match="another table than the model's"):
            lorafam.load_adapter(other, tmp_path / "theirs")


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_scales_its_embedding(tmp_path: Path) -> None:
    def gemma() -> Any:
        torch.manual_seed(0)
        config = Gemma3TextConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
        return Gemma3ForCausalLM(config).eval()

    theirs: Any = get_peft_model(gemma(), LoraConfig(r=RANK, target_modules=TARGETS))
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    ours: Any = lorafam.load_adapter(gemma(), tmp_path).eval()
    torch.testing.assert_close(ours(tokens()).logits, theirs.eval()(tokens()).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LoraEmbedding(nn.Linear(3, 3)), "base: expected an nn.Embedding"),
        (lambda: make(bias=True), "bias: an embedding's adapter has none"),
        (lambda: make(init="pissa"), "init: expected 'default' for an embedding"),
        (lambda: trained(make()).merge(into="nf4"), "into: an embedding keeps its dtype"),
        (lambda: lorafam.LoraLinear(nn.Embedding(3, 3)), "base: expected a module with in_features"),
        (
            lambda: lorafam.adapt(tiny_model(), AdapterConfig(method="adalora", target_modules=TARGETS)),
            "'model.embed_tokens' is an embedding: expected method 'lora' or 'dora'",
        ),
        (
            lambda: lorafam.adapt(tiny_model(), AdapterConfig(init="loftq", quantize="nf4", target_modules=TARGETS)),
            "init: 'loftq' needs the weight before it is quantised, 'model.embed_tokens' is a",
        ),
    ],
)
def test_what_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
