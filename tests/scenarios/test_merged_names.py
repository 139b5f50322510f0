"""Adapters merged into files whose tensors have other names, or are joined or parted, when transformers loads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import lorafam
from tests.model.tiny import disturb
from tests.scenarios.files import close

_TEXT: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
_IMAGE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 16,
    "patch_size": 8,
}  # fmt: skip
_ROTARY = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}


def _llava() -> nn.Module:
    text, vision = T.LlamaConfig(**_TEXT), T.CLIPVisionConfig(**_IMAGE)
    config = T.LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    return T.LlavaForConditionalGeneration(config)


def _qwen2_vl() -> nn.Module:
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 8}
    config = T.Qwen2VLConfig(text_config={**_TEXT, "rope_parameters": _ROTARY}, vision_config=vision)
    return T.Qwen2VLForConditionalGeneration(config)


def _qwen25_vl() -> nn.Module:
    vision = {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "num_heads": 4, "intermediate_size": 48}
    config = T.Qwen2_5_VLConfig(
        text_config={**_TEXT, "rope_parameters": _ROTARY}, vision_config={**vision, "patch_size": 8}
    )
    return T.Qwen2_5_VLForConditionalGeneration(config)


def _gemma3() -> nn.Module:
    text, vision = T.Gemma3TextConfig(**_TEXT, head_dim=8), T.SiglipVisionConfig(**_IMAGE)
    config = T.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5)
    return T.Gemma3ForConditionalGeneration(config)


def _paligemma() -> nn.Module:
    text, vision = T.GemmaConfig(**_TEXT, head_dim=8), T.SiglipVisionConfig(**_IMAGE, projection_dim=32)
    config = T.PaliGemmaConfig(
        text_config=text, vision_config=vision, projection_dim=32, hidden_size=32, image_token_index=5
    )
    return T.PaliGemmaForConditionalGeneration(config)


def _neox() -> nn.Module:
    config = T.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    return T.GPTNeoXForCausalLM(config)


def _mixtral() -> nn.Module:
    return T.MixtralForCausalLM(T.MixtralConfig(**_TEXT, num_local_experts=4))


def _dinov2() -> nn.Module:
    return T.Dinov2ForImageClassification(T.Dinov2Config(**_IMAGE, num_labels=3, use_swiglu_ffn=True))


def _bert() -> nn.Module:
    model = T.BertForMaskedLM(
        T.BertConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    )
    model.cls.predictions.bias.data.normal_()
    return model


QV = ["q_proj", "v_proj"]
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "LLaVA": (_llava, {"target_modules": QV}),
    "LLaVA, its vision and projector too": (_llava, {"target_modules": "all-linear"}),
    "LLaVA, table": (_llava, {"target_modules": ["embed_tokens"]}),
    "Qwen2-VL": (_qwen2_vl, {"target_modules": QV}),
    "Qwen2-VL, all biases": (_qwen2_vl, {"target_modules": QV, "bias": "all"}),
    "Qwen2.5-VL": (_qwen25_vl, {"target_modules": QV}),
    "Gemma 3": (_gemma3, {"target_modules": QV}),
    "Gemma 3, tied table": (_gemma3, {"target_modules": ["embed_tokens", "q_proj"]}),
    "Gemma 3, tied head": (_gemma3, {"target_modules": ["lm_head"]}),
    "Gemma 3, table saved whole": (_gemma3, {"target_modules": QV, "modules_to_save": ["embed_tokens"]}),
    "Gemma 3, tokens": (_gemma3, {"target_modules": QV, "trainable_token_indices": [7, 9]}),
    "PaliGemma": (_paligemma, {"target_modules": QV}),
    "PaliGemma, tied table": (_paligemma, {"target_modules": ["embed_tokens"]}),
    "GPT-NeoX": (_neox, {"target_modules": ["query_key_value", "lm_head"]}),
    "Mixtral, attention": (_mixtral, {"target_modules": QV}),
    # one tensor before transformers parted it
    "DINOv2, halves of one tensor": (_dinov2, {"target_modules": r".*\.mlp\.(gate_proj|up_proj|weights_in)"}),
    "BERT, tied table and bias": (_bert, {"target_modules": ["word_embeddings", "query"]}),
}


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    if isinstance(inner, T.Dinov2ForImageClassification):
        return model.eval()(pixel_values=torch.randn(2, 3, 16, 16, generator=generator)).logits
    return model.eval()(input_ids=torch.randint(6, 60, (2, 9), generator=generator)).logits


@pytest.mark.parametrize("name", CASES)
def test_the_merged_folder_is_loaded_as_it_is(name: str, tmp_path: Path) -> None:
    make, settings = CASES[name]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "model")
    load = type(model).from_pretrained
    theirs = get_peft_model(load(tmp_path / "model"), LoraConfig(r=4, init_lora_weights=False, **settings))
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "adapter")
    want = logits(PeftModel.from_pretrained(load(tmp_path / "model"), tmp_path / "adapter"))
    assert (want - logits(model)).norm() > 1e-3 * want.norm()
    for size in ("5GB", "6KB"):
        lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / size, max_shard_size=size)
        merged, told = load(tmp_path / size, output_loading_info=True)
        close(logits(merged), want)
        assert not told["missing_keys"]
        assert not told["unexpected_keys"]
    # also in memory, and saved from there
    ours = lorafam.load_adapter(load(tmp_path / "model"), tmp_path / "adapter")
    close(logits(ours), want)
    lorafam.merge_and_unload(ours)
    ours.save_pretrained(tmp_path / "unloaded")
    close(logits(load(tmp_path / "unloaded")), want)


def test_names_of_the_files_are_kept(tmp_path: Path) -> None:
    torch.manual_seed(0)
    _llava().save_pretrained(tmp_path / "model")
    base = T.LlavaForConditionalGeneration.from_pretrained(tmp_path / "model")
    get_peft_model(base, LoraConfig(r=4, target_modules=QV)).save_pretrained(tmp_path / "adapter")
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    names = []
    for folder in ("model", "merged"):
        with safe_open(tmp_path / folder / "model.safetensors", framework="pt") as file:
            names.append(sorted(file.keys()))
    assert names[0] == names[1]
    assert any(name.startswith("language_model.model.") for name in names[1])


OLDER = {
    "LLaVA": (_llava, lambda name: name.replace("model.model.language_model.", "model.language_model.model.")),
    "Gemma 3": (_gemma3, lambda name: name.replace("model.model.language_model.", "model.language_model.model.")),
    # PEFT reads this one as if it had no adapter
    "Qwen2-VL": (_qwen2_vl, lambda name: name.replace("model.model.language_model.", "model.model.")),
}


@pytest.mark.parametrize("name", OLDER)
def test_an_adapters_names_of_an_earlier_version(name: str, tmp_path: Path) -> None:
    make, older = OLDER[name]
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(tmp_path / "model")
    load = type(model).from_pretrained
    theirs = get_peft_model(load(tmp_path / "model"), LoraConfig(r=4, init_lora_weights=False, target_modules=QV))
    theirs.save_pretrained(tmp_path / "adapter")
    want = logits(theirs)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    renamed = {older(key): tensor for key, tensor in tensors.items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, file)
    ours = lorafam.load_adapter(load(tmp_path / "model"), tmp_path / "adapter")
    close(logits(ours), want)
    disturb(ours)
    lorafam.load_adapter(ours, tmp_path / "adapter")
    close(logits(ours), want)
    lorafam.merge_files(tmp_path / "model", tmp_path / "adapter", tmp_path / "merged")
    close(logits(load(tmp_path / "merged")), want)


def test_a_file_may_name_modules_that_this_model_lacks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = _neox()
    names = ["query_key_value", "q_proj", "up_proj"]
    theirs = get_peft_model(model, LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    theirs.save_pretrained(tmp_path)
    assert len(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == 3
    torch.manual_seed(0)
    close(logits(lorafam.load_adapter(_neox(), tmp_path)), logits(theirs))
