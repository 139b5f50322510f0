"""TRL's trainers on models that lorafam adapted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import lorafam
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tokens
from tests.scenarios.test_trainer import WAYS, base, folder, same

__all__ = ["folder"]
README = {"method": "dora", "r": 8, "alpha": 16}
QUIET: dict[str, Any] = {
    "max_steps": 4,
    "save_steps": 2,
    "per_device_train_batch_size": 2,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
    "dataloader_pin_memory": False,
}


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(46))]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def sentences(begin: int, length: int) -> list[str]:
    return [" ".join(f"w{(i + 7 * j) % 46}" for j in range(begin, begin + length)) for i in range(8)]


def sft(model: Any, output: Path, **changes: Any) -> SFTTrainer:
    data = datasets.Dataset.from_dict({"text": sentences(0, 8)})
    arguments = SFTConfig(str(output), **QUIET | changes, max_length=16)
    return SFTTrainer(model, arguments, train_dataset=data, processing_class=tokenizer())


def dpo(model: Any, output: Path, reference: Any) -> DPOTrainer:
    parts = {"prompt": sentences(0, 4), "chosen": sentences(4, 3), "rejected": sentences(9, 3)}
    arguments = DPOConfig(str(output), **QUIET, max_length=16)
    data = datasets.Dataset.from_dict(parts)
    return DPOTrainer(model, ref_model=reference, args=arguments, train_dataset=data, processing_class=tokenizer())


def made(way: str, folder: Path, seed: int = 5, **settings: Any) -> Any:
    model = base(way, folder)
    torch.manual_seed(seed)
    return lorafam.adapt(model, lorafam.AdapterConfig(quantize="nf4" if way == "nf4" else None, **settings))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("trainer", ["SFT", "DPO"])
def test_resumed_to_the_same_bits(way: str, trainer: str, folder: Path, tmp_path: Path) -> None:
    """README's own example, by SFTTrainer with save_steps=2."""
    ends = []
    for seed, resume in ((5, None), (6, str(tmp_path / "checkpoint-2"))):
        model = made(way, folder, seed, **README)
        one = sft(model, tmp_path) if trainer == "SFT" else dpo(model, tmp_path, base("dense", folder))
        one.train(resume_from_checkpoint=resume)
        ends.append(model)
    same(*ends)
    assert any(layer.B.any() for layer in adapter_layers(ends[0]).values())
    assert not (tmp_path / "checkpoint-4" / "model.safetensors").exists()
    if way == "dense":
        theirs = PeftModel.from_pretrained(base(way, folder), tmp_path / "checkpoint-4").eval()
        torch.testing.assert_close(theirs(tokens()).logits, ends[0].eval()(tokens()).logits, rtol=1e-4, atol=1e-5)


def test_sft_is_as_with_peft(folder: Path, tmp_path: Path) -> None:
    ours = made("dense", folder, r=4, target_modules=["q_proj", "up_proj"])
    disturb(ours)
    lorafam.save_adapter(ours, tmp_path / "start")
    theirs = PeftModel.from_pretrained(base("dense", folder), tmp_path / "start", is_trainable=True)
    logged = []
    for model in (ours, theirs):
        trainer = sft(model, tmp_path / "out", learning_rate=1e-2)
        trainer.train()
        logged.append([record["loss"] for record in trainer.state.log_history if "loss" in record])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert logged[0][-1] < logged[0][0]


@pytest.mark.parametrize("way", ["dense", "nf4"])
@pytest.mark.parametrize("trainer", ["SFT", "DPO"])
def test_an_adapter_on_the_head_is_refused(way: str, trainer: str, folder: Path, tmp_path: Path) -> None:
    """TRL refuses PEFT's there, as its trainers multiply by the head's weight themselves."""
    model = made(way, folder, r=4, target_modules=["q_proj", "lm_head"])
    before = model(tokens()).logits
    one = sft(model, tmp_path) if trainer == "SFT" else dpo(model, tmp_path, base("dense", folder))
    with pytest.raises(ValueError, match="the adapter of 'lm_head' would be skipped"):
        one.train()
    # by itself it computes as ever
    torch.testing.assert_close(model.eval()(tokens()).logits, before)
    model.generate(tokens(), max_new_tokens=2, pad_token_id=0)


def test_a_head_that_is_trained_whole_trains(folder: Path, tmp_path: Path) -> None:
    model = made("nf4", folder, r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    before = model.lm_head.weight.detach().clone()
    sft(model, tmp_path).train()
    assert not torch.equal(model.lm_head.weight, before)
    assert torch.equal(model.lm_head.base_layer.weight, before)
