"""Every column sees what it is there for: a model is spoilt in one place, and the column fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lorafam.bench.architectures import columns
from lorafam.bench.architectures.models import WAYS, Made, factors
from lorafam.bench.architectures.one_row import told, tried
from lorafam.bench.architectures.rows import BY_NAME, FAST

import lorafam
from lorafam.methods import AdapterLayer

LLAMA = BY_NAME["llama"]


@pytest.mark.parametrize("name", FAST)
def test_an_architecture_works_in_every_column(name: str) -> None:
    result = tried(BY_NAME[name])
    assert not told(result), told(result)
    outcomes = [one["outcome"] for ways in result["columns"].values() for one in ways.values()]
    assert len(outcomes) == 4 * (6 if BY_NAME[name].generates else 5)
    refused = sum(len(known.ways) * len(known.columns) for known in BY_NAME[name].refused)
    assert outcomes.count("refused") == refused
    assert outcomes.count("works") == len(outcomes) - refused


class Spoilt(Made):
    """Own layers whose model is changed before it is looked at."""

    def __init__(self, folder: Path, spoil: Callable[[Any], None] = lambda model: None) -> None:
        super().__init__(LLAMA, WAYS[0], folder)
        self.spoil = spoil

    @cached_property
    def ours(self) -> Any:
        model = self.new_ours()
        self.spoil(model)
        return model


def first(model: Any) -> AdapterLayer:
    return next(module for module in model.modules() if isinstance(module, AdapterLayer))


def larger(model: Any) -> None:
    with torch.no_grad():
        first(model).B.mul_(1.001)


def without_gradient(model: Any) -> None:
    first(model).B.register_hook(lambda gradient: 0.999 * gradient)


def another(model: Any) -> None:
    with torch.no_grad():
        for name, factor in factors(model):
            factor.mul_(-1 if name.endswith(".B") else 1)


@pytest.mark.parametrize(
    ("column", "spoil"),
    [("forward", larger), ("backward", without_gradient), ("generate", another)],
)
def test_a_value_that_is_off_is_seen(column: str, spoil: Callable[[Any], None], tmp_path: Path) -> None:
    columns.COLUMNS[column](Spoilt(tmp_path))
    with pytest.raises(AssertionError):
        columns.COLUMNS[column](Spoilt(tmp_path, spoil))


def test_an_adapter_that_changes_nothing_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(model: Any) -> None:
        with torch.no_grad():
            for _, factor in factors(model):
                factor.zero_()

    monkeypatch.setattr("lorafam.bench.architectures.models.fill", nothing)
    with pytest.raises(AssertionError, match="adapters change the outputs by 0"):
        columns.forward(Spoilt(tmp_path))


def test_another_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = lorafam.save_adapter

    def other(model: Any, folder: Any) -> None:
        larger(model)
        save(model, folder)

    monkeypatch.setattr(lorafam, "save_adapter", other)
    with pytest.raises(AssertionError, match="read by PEFT: expected the same bits"):
        columns.files(Spoilt(tmp_path))


def test_another_merged_weight_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge = lorafam.merge_and_unload

    def other(model: Any, **settings: Any) -> Any:
        larger(model)
        return merge(model, **settings)

    monkeypatch.setattr(lorafam, "merge_and_unload", other)
    with pytest.raises(AssertionError, match="merged: error against fp64"):
        columns.merge(Spoilt(tmp_path))


def test_a_resumed_run_that_forgot_something_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns.trainer(Spoilt(tmp_path))
    monkeypatch.setattr(transformers.Trainer, "_load_optimizer_and_scheduler", lambda self, checkpoint: None)
    with pytest.raises(AssertionError, match="tensors differ after resuming"):
        columns.trainer(Spoilt(tmp_path))
