"""AdaLoraCallback() on PEFT's AdaLoRA: PEFT's allocation happens, at PEFT's steps, and is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

import lorafam
from tests.model.tiny import disturb, tiny_model, tokens

STEPS = 8


def model_of() -> Any:
    config = AdaLoraConfig(
        init_r=4, target_r=2, tinit=1, tfinal=2, deltaT=1, total_step=STEPS, target_modules=["q_proj"]
    )
    torch.manual_seed(0)
    model = get_peft_model(tiny_model(), config)
    disturb(model)
    return model


def train(model: Any, output: Path, steps: int = STEPS, resume: str | None = None, **changes: Any) -> Any:
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=2,
        max_steps=steps,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no", **changes},
    )
    data = [{"input_ids": row, "labels": row} for row in tokens(rows=2 * STEPS)]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[lorafam.AdaLoraCallback()])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def ranks(model: Any) -> list[int]:
    return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]


@pytest.mark.parametrize("accelerated", [False, True])
def test_ranks_reach_the_target(accelerated: bool, tmp_path: Path) -> None:
    model = model_of()
    if accelerated:
        lorafam.accelerate(model)
    assert sum(ranks(model)) == 8
    train(model, tmp_path)
    assert sum(ranks(model)) == 4
    assert model.peft_config["default"].rank_pattern


def test_a_resumed_run_allocates_the_same(tmp_path: Path) -> None:
    whole = model_of()
    train(whole, tmp_path / "whole")
    interrupted = model_of()
    train(interrupted, tmp_path / "parts", save_strategy="steps", save_steps=4)
    again = model_of()
    train(again, tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-4"))
    assert ranks(again) == ranks(whole) == ranks(interrupted)
    assert sum(ranks(again)) == 4
    for part, full in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(part, full, rtol=1e-5, atol=1e-6)
    # the checkpoint loads in plain PEFT
    PeftModel.from_pretrained(tiny_model(), tmp_path / "parts" / "checkpoint-4")


def test_other_models_and_schedules_are_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected PEFT's AdaLoRA"):
        train(get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"])), tmp_path)
    with pytest.warns(UserWarning, match="total_step is 8, training ends at step 9"):
        train(model_of(), tmp_path, steps=9)
    with pytest.raises(RuntimeError, match="training hasn't begun"):
        lorafam.AdaLoraCallback().save(tmp_path, 1)
