"""New heads and other modules trained whole belong to the adapter: found, trained, saved, read, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import lorafam
from lorafam import AdapterConfig, NF4Linear
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model


def llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, num_labels=3, pad_token_id=0,
        )
    ).eval()  # fmt: skip


def bert() -> nn.Module:
    torch.manual_seed(0)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_labels=3,
        )
    ).eval()  # fmt: skip


MODELS = {"llama": (llama, "score", "q_proj"), "bert": (bert, "classifier", "query")}


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(3))
    return model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"quantize": "nf4"}, {"target_modules": "all-linear"}])
@pytest.mark.parametrize("name", MODELS)
def test_a_tasks_head_is_trained_whole_and_saved(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    make, head, _ = MODELS[name]
    base = make()
    before = logits(base)
    model = lorafam.adapt(base, AdapterConfig(r=4, **settings))
    if not settings.get("quantize"):
        close(logits(model), before)
    assert not any(path.startswith(head) for path in adapter_layers(model))
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad and "adapters" not in n} == {head}
    disturb(model)
    assert not isinstance(model.get_submodule(head).active, NF4Linear)
    lorafam.save_adapter(model, tmp_path)
    assert f"base_model.model.{head}.weight" in load_file(tmp_path / "adapter_model.safetensors")
    fresh = make()
    torch.nn.init.normal_(fresh.get_submodule(head).weight)
    if settings.get("quantize"):
        prepared = lorafam.adapt(make(), AdapterConfig(r=4, **settings))
        close(logits(lorafam.load_adapter(prepared, tmp_path)), logits(model))
    else:
        close(logits(PeftModel.from_pretrained(make(), tmp_path)), logits(model))
        close(logits(lorafam.load_adapter(fresh, tmp_path)), logits(model))


@pytest.mark.parametrize("name", MODELS)
def test_pefts_heads_are_read(name: str, tmp_path: Path) -> None:
    make, _head, target = MODELS[name]
    theirs = get_peft_model(
        make(), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=[target], init_lora_weights=False)
    )
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    ours = lorafam.load_adapter(make(), tmp_path)
    close(logits(ours), logits(theirs))
    lorafam.save_adapter(ours, tmp_path / "again")
    close(logits(lorafam.load_adapter(make(), tmp_path / "again")), logits(theirs))


def test_a_head_is_merged_in_files(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "model")
    model = lorafam.adapt(llama(), AdapterConfig(r=4))
    disturb(model)
    lorafam.save_adapter(model, tmp_path / "adapter")
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    close(logits(LlamaForSequenceClassification.from_pretrained(tmp_path / "merged")), logits(model))


def test_a_head_that_is_adapted_by_name_is_adapted() -> None:
    model = lorafam.adapt(llama(), AdapterConfig(r=4, target_modules=["q_proj", "score"]))
    assert "score" in adapter_layers(model)


def test_no_head_where_none_is_asked_for() -> None:
    model = lorafam.adapt(llama(), AdapterConfig(r=4, modules_to_save=()))
    assert "score" in adapter_layers(model)


@pytest.mark.parametrize("names", [["lm_head"], ["norm"], ["embed_tokens"], ["layers.0.mlp"]])
def test_modules_to_save_by_name(names: list[str], tmp_path: Path) -> None:
    settings = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": names}
    model = lorafam.adapt(tiny_model(), AdapterConfig(**settings))
    theirs = get_peft_model(tiny_model(), LoraConfig(**settings))
    want = {n.replace("modules_to_save", "copies") for n, p in theirs.named_parameters() if p.requires_grad}
    have = {f"base_model.model.{n}" for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in want if "copies" in n} == {n for n in have if "copies" in n}
    disturb(model)
    ids = torch.arange(2, 12).unsqueeze(0)
    with torch.no_grad():
        out = model.eval()(ids).logits
        lorafam.save_adapter(model, tmp_path)
        close(PeftModel.from_pretrained(tiny_model(), tmp_path).eval()(ids).logits, out)
        close(lorafam.load_adapter(tiny_model(), tmp_path).eval()(ids).logits, out)
        with lorafam.disabled(model):
            close(model(ids).logits, tiny_model().eval()(ids).logits)
        lorafam.merge_and_unload(model)
        close(model(ids).logits, out)
    assert not any("copies" in name for name, _ in model.named_parameters())


def test_each_adapter_has_its_own_head(tmp_path: Path) -> None:
    model = lorafam.adapt(llama(), AdapterConfig(r=4))
    disturb(model, 1)
    first = logits(model)
    lorafam.save_adapter(model, tmp_path)
    lorafam.add_adapter(model, "b", AdapterConfig(r=4))
    lorafam.set_adapter(model, "b")
    close(logits(model), logits(llama()))
    disturb(model, 2)
    second = logits(model)
    lorafam.load_adapter(model, tmp_path, "c")
    lorafam.set_adapter(model, "c")
    close(logits(model), first)
    lorafam.set_adapter(model, "b")
    close(logits(model), second)
    lorafam.load_adapter(model, tmp_path)
    close(logits(model), first)
    lorafam.set_adapter(model, "default")
    lorafam.delete_adapter(model, "b")
    close(logits(model), first)


@pytest.mark.parametrize(
    ("names", "message"), [(["nothing"], "no module is called 'nothing'"), (["layers"], "can't be trained whole")]
)
def test_modules_that_can_not_be_saved(names: list[str], message: str) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=f"modules_to_save: .*{message}"):
        lorafam.adapt(model, AdapterConfig(r=4, modules_to_save=names))
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_module_without_parameters_is_saved_as_in_peft(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["act_fn"]}
    theirs = get_peft_model(tiny_model(), LoraConfig(**settings))
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    model = lorafam.load_adapter(tiny_model(), tmp_path / "theirs")
    close(logits(model), logits(theirs))
    lorafam.save_adapter(model, tmp_path / "ours")
    close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path / "ours")), logits(theirs))
    assert lorafam.adapt(tiny_model(), AdapterConfig(**settings))


def test_a_target_that_is_trained_whole_too_is_trained_whole() -> None:
    settings: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "lm_head"], "modules_to_save": ["lm_head"]}
    model = lorafam.adapt(tiny_model(), AdapterConfig(**settings))
    theirs = get_peft_model(tiny_model(), LoraConfig(**settings))
    counts = [sum(p.numel() for p in one.parameters() if p.requires_grad) for one in (model, theirs)]
    assert counts[0] == counts[1]
    with pytest.raises(ValueError, match="no module is called 'lm_head'"):
        lorafam.adapt(tiny_model(), AdapterConfig(**settings | {"target_modules": ["lm_head"]}))


def tied_model() -> nn.Module:
    config = tiny_model().config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


@pytest.mark.parametrize("name", ["lm_head", "embed_tokens"])
def test_what_is_tied_is_trained_whole_alone(name: str, tmp_path: Path) -> None:
    model = lorafam.adapt(tied_model(), AdapterConfig(r=4, target_modules=["q_proj"], modules_to_save=[name]))
    disturb(model)
    ids = torch.arange(2, 12).unsqueeze(0)
    with torch.no_grad():
        out = model.eval()(ids).logits
        lorafam.save_adapter(model, tmp_path / "adapter")
        close(PeftModel.from_pretrained(tied_model(), tmp_path / "adapter").eval()(ids).logits, out)
        lorafam.merge_and_unload(model)
        close(model(ids).logits, out)
        model.save_pretrained(tmp_path / "merged")
        close(LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits, out)


def test_what_three_share_is_not_merged_as_a_whole() -> None:
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    model = T5ForConditionalGeneration(T5Config(vocab_size=50, **sizes))
    lorafam.adapt(model, AdapterConfig(r=4, target_modules=["q"], modules_to_save=["shared"]))
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"shared: its weight is tied to .* and .*, which saving"):
        lorafam.merge_and_unload(model)
    assert {name: type(module) for name, module in model.named_modules()} == before


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens", "q_proj"]])
def test_what_is_tied_is_merged_into_a_weight_of_its_own(targets: list[str], tmp_path: Path) -> None:
    model = lorafam.adapt(tied_model(), AdapterConfig(r=4, target_modules=targets))
    disturb(model)
    ids = torch.arange(2, 12).unsqueeze(0)
    with torch.no_grad():
        out = model.eval()(ids).logits
        lorafam.merge_and_unload(model)
        close(model(ids).logits, out)
        model.save_pretrained(tmp_path)
        close(LlamaForCausalLM.from_pretrained(tmp_path).eval()(ids).logits, out)


@pytest.mark.parametrize("into", ["bf16", "fp32"])
@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]])
def test_a_bitsandbytes_model_that_was_merged_says_so(into: str, targets: list[str] | None, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    from transformers import LlamaForCausalLM

    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=four_bits)
    lorafam.adapt(model, AdapterConfig(r=4, target_modules=targets))
    disturb(model)
    lorafam.merge_and_unload(model, into=into)
    ids = torch.arange(2, 12).unsqueeze(0)
    with torch.no_grad():
        out = model.eval()(ids).logits.float()
        model.save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=model.dtype).eval()
        torch.testing.assert_close(again(ids).logits.float(), out, rtol=2e-2, atol=2e-2)
    assert hasattr(model.config, "quantization_config") == (targets is not None)
    if targets is None:
        model.to(torch.float32)


def test_a_bias_that_saving_would_lose_is_not_merged() -> None:
    model = lorafam.adapt(tiny_model(), AdapterConfig(r=4, bias=True, target_modules=["q_proj"]))
    disturb(model)
    before = {name: type(module) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=r"q_proj: its adapter has a bias \(lora_bias\) and the layer none"):
        lorafam.merge_and_unload(model)
    assert {name: type(module) for name, module in model.named_modules()} == before
