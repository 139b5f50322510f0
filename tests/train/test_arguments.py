from pathlib import Path
from typing import Any

import pytest
import torch

from lorafam.train.arguments import training_arguments
from tests.train.tiny_run import settings


def arguments(tmp_path: Path, **changes: Any) -> Any:
    return training_arguments(settings(Path("m"), Path("t"), tmp_path, **changes))


def test_settings_reach_the_trainer(tmp_path: Path) -> None:
    found = arguments(
        tmp_path, steps=7, batch_size=3, gradient_accumulation=5, learning_rate=0.125, warmup_steps=2, seed=11
    )
    assert found.output_dir == str(tmp_path)
    assert (found.max_steps, found.per_device_train_batch_size, found.gradient_accumulation_steps) == (7, 3, 5)
    assert (found.learning_rate, found.warmup_steps, found.seed, found.weight_decay) == (0.125, 2, 11, 0.0)
    assert found.use_cpu == (not torch.cuda.is_available())


@pytest.mark.parametrize(
    ("schedule", "name"), [("linear", "linear"), ("cosine", "cosine"), ("constant", "constant_with_warmup")]
)
def test_schedules(schedule: str, name: str, tmp_path: Path) -> None:
    assert arguments(tmp_path, schedule=schedule).lr_scheduler_type == name


@pytest.mark.parametrize("wanted", [True, False])
def test_checkpointing(wanted: bool, tmp_path: Path) -> None:
    found = arguments(tmp_path, gradient_checkpointing=wanted)
    assert found.activation_checkpointing == wanted
    assert found.activation_checkpointing_kwargs == {"use_reentrant": False}


def test_several_gpus_are_no_reason_to_copy_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four = property(lambda self: getattr(self, "_n_gpu", 0) or 4)
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", four)
    assert arguments(tmp_path).n_gpu == 1
