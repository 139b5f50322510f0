"""A checkpoint of `AdapterTrainer` is there whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
from transformers import Trainer

from lorafam.finetune import checkpoints, finetune
from tests.finetune.tiny_run import settings


@pytest.mark.parametrize("method", ["_save_optimizer_and_scheduler", "_save_rng_state"])
def test_stopped_while_saving(
    method: str, model_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two files of checkpoint-10 leaves checkpoint-5 alone, and nothing half written."""
    config = settings(model_folder, text_file, tmp_path / "run", dropout=0.3)
    real = getattr(Trainer, method)

    def interrupted(self: Trainer, folder: str) -> None:
        if self.state.global_step == 10:
            assert checkpoints.find_newest(tmp_path / "run").newest == tmp_path / "run" / "checkpoint-5"
            raise KeyboardInterrupt
        real(self, folder)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            finetune(config)
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoint-5", "held_out.json", "log.jsonl", "run.yaml"]
    resumed = finetune(dataclasses.replace(config, resume=True))
    whole = finetune(dataclasses.replace(config, output=str(tmp_path / "whole")))
    names = [result.adapter / "adapter_model.safetensors" for result in (resumed, whole)]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_checkpoints_at_their_steps(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    seen = []
    real = checkpoints.publish

    def publish(folder: Path, target: Path) -> None:
        seen.append(target.name)
        real(folder, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "publish", publish)
        finetune(settings(model_folder, text_file, tmp_path / "some", steps=7, save_every=3))
        finetune(settings(model_folder, text_file, tmp_path / "last", steps=7, save_every=0))
    assert seen == ["checkpoint-3", "checkpoint-6", "checkpoint-7", "checkpoint-7"]
    files = set(os.listdir(tmp_path / "last" / "checkpoint-7"))
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    assert files == adapter | {
        checkpoints.TRAINABLE,
        "optimizer.pt",
        "scheduler.pt",
        "rng_state.pth",
        "trainer_state.json",
    }
