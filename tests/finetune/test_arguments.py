from pathlib import Path
from typing import Any

import pytest
import torch

from lorafam.compat.transformers import checkpointing_field
from lorafam.finetune.arguments import paged_optimizer, training_arguments
from tests.finetune.tiny_run import settings


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


def test_optimizers(tmp_path: Path) -> None:
    """The settings that Trainer gives its own."""
    for name, bits in (("adamw", None), ("paged_adamw", 32), ("paged_adamw_8bit", 8)):
        config = settings(Path("m"), Path("t"), tmp_path, optimizer=name, learning_rate=0.125)
        found = paged_optimizer(config, training_arguments(config))
        if bits is None:
            assert found is None
            continue
        assert found is not None
        optimizer = found[0]([torch.nn.Parameter(torch.ones(2))], **{**found[1], "page_file": None})
        assert optimizer.bits == bits
        assert optimizer.defaults == {"lr": 0.125, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
        assert found[1]["page_file"] == (None if torch.cuda.is_available() else str(tmp_path))


@pytest.mark.parametrize("wanted", [True, False])
def test_checkpointing(wanted: bool, tmp_path: Path) -> None:
    found = arguments(tmp_path, gradient_checkpointing=wanted)
    field = checkpointing_field(found)
    assert getattr(found, field) == wanted
    assert getattr(found, f"{field}_kwargs") == {"use_reentrant": False}


def test_several_gpus_are_no_reason_to_copy_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    four = property(lambda self: getattr(self, "_n_gpu", 0) or 4)
    monkeypatch.setattr("transformers.TrainingArguments.n_gpu", four)
    assert arguments(tmp_path).n_gpu == 1
