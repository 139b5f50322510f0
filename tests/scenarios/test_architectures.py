"""What single architectures of transformers do with their layers, and what PEFT makes of their names."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as nnf
from transformers import (
    BitsAndBytesConfig,
    BloomConfig,
    BloomForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)
from transformers.pytorch_utils import Conv1D

import lorafam
from lorafam.methods import AdapterLayer
from tests.model.tiny import disturb

CONFIG = {"r": 4}


def bloom(**settings: Any) -> nn.Module:
    torch.manual_seed(0)
    return BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=32, n_layer=1, n_head=4, **settings)).eval()


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_a_weight_that_is_read_under_other_settings_alone_is_adapted(quantize: str | None) -> None:
    """Bloom multiplies by parts of `dense.weight` where it imitates a sharded training, and calls the layer else."""
    model = bloom()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lorafam.adapt(model, lorafam.AdapterConfig(**CONFIG, quantize=quantize))
    layers = [module for module in model.modules() if isinstance(module, AdapterLayer)]
    assert len(layers) == 4
    ids = torch.arange(3, 11).view(1, 8)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(layer.B.grad is not None and layer.B.grad.abs().max() > 0 for layer in layers)
    other = bloom(pretraining_tp=2, slow_but_exact=True)
    with pytest.raises(ValueError, match=r"self_attention\.dense' can't be adapted: BloomAttention"):
        lorafam.adapt(other, lorafam.AdapterConfig(**CONFIG, target_modules=["dense"]))


class Reads(nn.Module):
    """Computes with a weight itself in one of several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.inner = way, nn.Linear(8, 8)
        self.block = nn.ModuleDict()
        self.part = nn.Sequential()
        self.part.add_module("inner", nn.Linear(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return nnf.linear(x, self.inner.weight)
        return self.inner(x) + nnf.linear(x, self.part.inner.weight)


class ReadsToo(Reads):
    """Inherits the forward."""

    def extra_repr(self) -> str:
        return self.way


class CallsOn(Reads):
    """Has a forward of its own, which calls the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * x)


class Calls(Reads):
    """Has another forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        asked = self.inner.weight.dtype, self.part.inner.weight.size(0)
        return self.part(self.inner(x)) if asked and isinstance(self.inner.weight, torch.Tensor) else x


@pytest.mark.parametrize("kind", [Reads, ReadsToo, CallsOn])
@pytest.mark.parametrize("name", ["inner", "part.inner"])
def test_a_weight_that_is_read_by_an_inherited_method_or_from_further_above_is_refused(
    kind: type[Reads], name: str
) -> None:
    path = name if name == "part.inner" else "net.inner"
    with pytest.raises(ValueError, match=f"{name}' can't be adapted: {kind.__name__} computes with its weight itself"):
        lorafam.adapt(nn.ModuleDict({"net": kind("a")}), lorafam.AdapterConfig(**CONFIG, target_modules=[path]))


def test_a_method_that_is_replaced_or_only_asks_reads_nothing() -> None:
    net = lorafam.adapt(nn.ModuleDict({"net": Calls("a")}), lorafam.AdapterConfig(**CONFIG))
    assert sum(isinstance(module, AdapterLayer) for module in net.modules()) == 2


def deepseek() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    more = {"v_head_dim": 8, "kv_lora_rank": 16, "q_lora_rank": 16, "num_hidden_layers": 2, "first_k_dense_replace": 1}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
    return DeepseekV3ForCausalLM(DeepseekV3Config(**sizes, **heads, **more, **experts)).eval()


def test_layers_that_peft_takes_for_experts_are_told_when_saved(tmp_path: Path) -> None:
    ids = torch.arange(3, 11).view(1, 8)
    model = lorafam.adapt(deepseek(), lorafam.AdapterConfig(**CONFIG))
    disturb(model)
    with pytest.warns(UserWarning, match=r"PEFT takes 'model.layers.0.mlp.\w+_proj' \(6 such\) for fused experts"):
        lorafam.save_adapter(model, tmp_path / "all")
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        found = lorafam.load_adapter(deepseek(), tmp_path / "all")(input_ids=ids).logits
        torch.testing.assert_close(found, wanted)
        # what the warning is of
        with pytest.warns(UserWarning, match="adapter"):
            other = PeftModel.from_pretrained(deepseek(), tmp_path / "all")(input_ids=ids).logits
        assert not torch.allclose(other, wanted, atol=1e-3)


def test_layers_that_peft_reads_are_saved_without_a_word(tmp_path: Path) -> None:
    ids = torch.arange(3, 11).view(1, 8)
    names = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
    model = lorafam.adapt(deepseek(), lorafam.AdapterConfig(**CONFIG, target_modules=names))
    disturb(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lorafam.save_adapter(model, tmp_path)
    with torch.no_grad():
        found = PeftModel.from_pretrained(deepseek(), tmp_path)(input_ids=ids).logits
        torch.testing.assert_close(found, model(input_ids=ids).logits)


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=64, n_layer=1, n_head=4, n_positions=32)).eval()


@pytest.mark.parametrize("base", ["dense", "nf4", "loftq", "bitsandbytes"])
@pytest.mark.parametrize("into", ["fp32", "bf16"])
def test_what_was_a_conv1d_is_one_again_when_merged(base: str, into: str, tmp_path: Path) -> None:
    """Saved as an nn.Linear, its weight lay the other way round: loading failed, or, square, took it transposed."""
    ids = torch.arange(3, 11).view(1, 8)
    settings = {"dense": {}, "nf4": {"quantize": "nf4"}, "loftq": {"quantize": "nf4", "init": "loftq"}}
    model = gpt2()
    if base == "bitsandbytes":
        model.save_pretrained(tmp_path / "base")
        four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        model = GPT2LMHeadModel.from_pretrained(tmp_path / "base", quantization_config=four_bits).eval()
    lorafam.adapt(model, lorafam.AdapterConfig(**CONFIG, **settings.get(base, {})))
    disturb(model)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        lorafam.merge_and_unload(model, into=into)
        layers = [module for path, module in model.named_modules() if path.endswith(("c_attn", "c_proj", "c_fc"))]
        assert [type(layer) for layer in layers] == [Conv1D] * 4
        merged = model(input_ids=ids).logits
        difference = (merged.float() - wanted).norm() / wanted.norm()
        assert difference < (1e-5 if into == "fp32" else 2e-2)
        model.save_pretrained(tmp_path / "merged")
        loaded = GPT2LMHeadModel.from_pretrained(tmp_path / "merged", dtype=merged.dtype).eval()
        torch.testing.assert_close(loaded(input_ids=ids).logits, merged, rtol=0, atol=0)


def test_a_merged_conv1d_can_be_taken_apart_again() -> None:
    ids = torch.arange(3, 11).view(1, 8)
    model = lorafam.adapt(gpt2(), lorafam.AdapterConfig(**CONFIG, quantize="nf4"))
    disturb(model)
    layer = next(module for module in model.modules() if isinstance(module, AdapterLayer))
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        layer.merge(into="fp32")
        assert type(layer.base_layer) is Conv1D
        torch.testing.assert_close(model(input_ids=ids).logits, wanted)
        layer.unmerge()
        torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=0, atol=0)


@pytest.mark.parametrize("keep", [(), ("c_fc",)])
def test_merged_into_a_dense_format_no_4bit_layer_is_left(keep: tuple[str, ...], tmp_path: Path) -> None:
    """Those without an adapter stayed, and transformers loaded random weights in their place."""
    ids = torch.arange(3, 11).view(1, 8)
    model = lorafam.adapt(gpt2(), lorafam.AdapterConfig(**CONFIG, quantize="nf4", target_modules=["c_attn", "c_fc"]))
    disturb(model)
    with torch.no_grad():
        wanted = model(input_ids=ids).logits
        lorafam.merge_and_unload(model, into="fp32", keep_unmerged=keep)
        left = [path for path, module in model.named_modules() if isinstance(module, lorafam.NF4Linear)]
        assert left == [f"transformer.h.0.mlp.{name}.base_layer" for name in keep]
        torch.testing.assert_close(model(input_ids=ids).logits, wanted)
        if not keep:
            model.save_pretrained(tmp_path)
            loaded = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
            torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits, rtol=0, atol=0)
