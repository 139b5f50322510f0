"""Some layers merged, some left: what is saved then is for the base as it was, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb
from tests.scenarios.files import close, gpt2, llama, logits, qwen

TARGETS = ["q_proj", "v_proj", "lm_head", "embed_tokens"]
# base, settings, what is left
CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "a projection": (llama, {"target_modules": TARGETS}, "q_proj"),
    "the head": (llama, {"target_modules": TARGETS}, "lm_head"),
    "the table": (llama, {"target_modules": TARGETS}, "embed_tokens"),
    "DoRA": (llama, {"target_modules": ["q_proj", "v_proj"], "method": "dora"}, "q_proj"),
    "biases": (qwen, {"target_modules": ["q_proj", "v_proj"], "bias": True}, "q_proj"),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_fc"]}, "c_fc"),
    "tokens": (llama, {"target_modules": ["q_proj", "v_proj"], "trainable_token_indices": [1, 5]}, "v_proj"),
    "a head trained whole": (llama, {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]}, "v_proj"),
}


def partly(base: nn.Module, settings: dict[str, Any], keep: str, into: str = "same") -> Any:
    model = lorafam.adapt(base, AdapterConfig(r=4, **settings))
    disturb(model)
    before = logits(model)
    lorafam.merge_and_unload(model, keep_unmerged=keep, into=into)
    close(logits(model), before)
    return model


@pytest.mark.parametrize("case", CASES)
def test_the_file_has_what_was_merged(case: str, tmp_path: Path) -> None:
    make, settings, keep = CASES[case]
    model = partly(make(), settings, keep)
    lorafam.save_adapter(model, tmp_path)
    close(logits(PeftModel.from_pretrained(make(), tmp_path)), logits(model))
    again = lorafam.load_adapter(make(), tmp_path)
    close(logits(again), logits(model))
    lorafam.save_adapter(again, tmp_path / "again")
    close(logits(lorafam.load_adapter(make(), tmp_path / "again")), logits(model))
    model.save_pretrained(tmp_path / "by transformers")
    close(logits(lorafam.load_adapter(make(), tmp_path / "by transformers")), logits(model))
    make().save_pretrained(tmp_path / "model")
    lorafam.merge_files(tmp_path / "model", tmp_path, tmp_path / "merged")
    close(logits(type(make()).from_pretrained(tmp_path / "merged")), logits(model))


@pytest.mark.parametrize("keep", ["lm_head", "embed_tokens", "q_proj"])
def test_what_was_parted_is_not_loaded_over_what_is_tied(keep: str, tmp_path: Path) -> None:
    model = partly(llama(tied=True), {"target_modules": TARGETS}, keep)
    lorafam.save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match=r"is another than .*, to which the model ties it"):
        lorafam.load_adapter(llama(tied=True), tmp_path)
    llama(tied=True).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="is another than what it is tied to"):
        lorafam.merge_files(tmp_path / "model", tmp_path, tmp_path / "merged")
    untied: Any = llama(tied=True)
    untied.lm_head.weight = nn.Parameter(untied.lm_head.weight.detach().clone())
    close(logits(lorafam.load_adapter(untied, tmp_path)), logits(model))


def test_what_was_merged_into_4_bits_is_not_saved(tmp_path: Path) -> None:
    settings = {"target_modules": ["q_proj", "v_proj"], "quantize": "nf4"}
    model = lorafam.adapt(llama(), AdapterConfig(r=4, **settings))
    disturb(model)
    lorafam.merge_and_unload(model, keep_unmerged="q_proj")
    for save in (lorafam.save_adapter, lambda adapted, folder: adapted.save_pretrained(folder)):
        with pytest.raises(ValueError, match=r"v_proj\.weight' was merged into 4 bits"):
            save(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_other_adapters_are_gone() -> None:
    model: Any = lorafam.adapt(
        llama(), AdapterConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    )
    lorafam.add_adapter(model, "other")
    lorafam.add_adapter(model, "elsewhere", AdapterConfig(r=4, target_modules=["k_proj"]))
    disturb(model)
    before = logits(model)
    lorafam.merge_and_unload(model, keep_unmerged="q_proj")
    close(logits(model), before)
    assert {name for layer in adapter_layers(model).values() for name in layer.adapters} == {"default"}
    assert list(model.lm_head.copies) == ["default"]
    with pytest.raises(KeyError, match="other"):
        lorafam.set_adapter(model, "other")
