from pathlib import Path

import pytest

from lorafam.finetune import DivergedError, finetune
from lorafam.finetune.recorder import SilentReporter
from lorafam.finetune.run_log import Record, read_log
from tests.finetune.tiny_run import settings


class Everything(SilentReporter):
    def __init__(self) -> None:
        self.told: list[object] = []

    def note(self, text: str) -> None:
        self.told.append(text)

    def begin(self, done: int, total: int) -> None:
        self.told.append((done, total))

    def step(self, record: Record) -> None:
        self.told.append(record)

    def end(self) -> None:
        self.told.append("end")


def test_each_step_is_logged_and_told(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    reporter = Everything()
    config = settings(model_folder, text_file, tmp_path, steps=4, evaluate_every=3, batch_size=2, warmup_steps=2)
    finetune(config, reporter=reporter)
    records = read_log(tmp_path / "log.jsonl")
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4]
    assert reporter.told[-6:] == [(0, 4), *records[1:], "end"]
    assert [record.get("held_out_loss") is not None for record in records] == [True, False, False, True, True]
    assert [record["learning_rate"] for record in records[1:]] == pytest.approx([0, 0.005, 0.01, 0.005])
    for record in records[1:]:
        assert record["tokens_per_second"] == pytest.approx(2 * 17 / record["seconds"])
        assert record["gradient_norm"] > 0


def test_logged_loss_is_without_the_penalty(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    """At the first step AdaLoRA's E is 0, so its loss is that of LoRA's first step."""
    logs = {}
    for method in ("lora", "adalora"):
        config = settings(model_folder, text_file, tmp_path / method, method=method, gradient_accumulation=2)
        logs[method] = read_log(finetune(config).log)
    assert logs["adalora"][1]["penalty"] > 0.5
    assert logs["adalora"][1]["loss"] == pytest.approx(logs["lora"][1]["loss"], abs=1e-5)
    assert "penalty" not in logs["lora"][1]


def test_divergence_ends_the_run(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    config = settings(model_folder, text_file, tmp_path, learning_rate=1e30, schedule="constant")
    with pytest.raises(DivergedError, match=r"^loss: not finite at step \d+; try a lower learning_rate$"):
        finetune(config)
    assert [record["step"] for record in read_log(tmp_path / "log.jsonl")] == [0, 1]
