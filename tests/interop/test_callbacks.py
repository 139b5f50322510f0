"""AdaLoraCallback in a plain transformers Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerState, TrainingArguments

import lorafam
from lorafam import AdaLoraCallback
from lorafam.backends.selection import SlowPathWarning
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens

SCHEDULE = {"init_rank": 4, "target_rank": 2, "total_steps": 6, "warmup_steps": 1, "final_steps": 2, "interval": 1}


def test_states_that_cannot_be_cut_are_told_and_left() -> None:
    """Eight-bit blocks run across ranks: training goes on with the ranks that are there."""
    model = lorafam.adapt(tiny_model(), lorafam.AdapterConfig(method="adalora", r=12, target_modules=["q_proj"]))
    schedule = {"total_steps": 4, "warmup_steps": 0, "final_steps": 2, "interval": 1}
    allocator = lorafam.RankAllocator(model, init_rank=12, target_rank=2, **schedule)
    optimizer = lorafam.PagedAdamW([p for p in model.parameters() if p.requires_grad], bits=8, min_8bit_size=0)
    callback = AdaLoraCallback(allocator)
    for step in range(2):
        model(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
        state = TrainerState(global_step=step)
        if step == 1:
            with pytest.warns(SlowPathWarning, match="pruned ranks stay where they are: .* exp_avg_absmax"):
                callback.on_optimizer_step(None, state, None, optimizer=optimizer)
        else:
            callback.on_optimizer_step(None, state, None, optimizer=optimizer)
    assert {layer.A.shape[0] for layer in adapter_layers(model).values()} == {12}


def adapted(orthogonality: float = 0.5) -> tuple[Any, lorafam.RankAllocator]:
    model = lorafam.adapt(tiny_model(), lorafam.AdapterConfig(method="adalora", r=4, target_modules=["q_proj"]))
    disturb(model)
    return model, lorafam.RankAllocator(model, **SCHEDULE, orthogonality=orthogonality)


def train(model: Any, allocator: lorafam.RankAllocator, output: Path, resume: str | None = None, **changes: Any) -> Any:
    values: dict[str, Any] = {"max_steps": 6, "learning_rate": 1e-2, "save_strategy": "no", **changes}
    arguments = TrainingArguments(
        output_dir=str(output),
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **values,
    )
    ids = tokens(rows=48)
    data = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=[lorafam.AdaLoraCallback(allocator)])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer: Any) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


@pytest.mark.parametrize("items", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_penalty_counts_once_a_step(items: bool, accumulation: int, tmp_path: Path) -> None:
    """The first step's loss is the language model's plus the whole penalty, however many passes the step has.

    `items`: the model is told the number of items in the step, so that its losses are summed, not averaged.
    """
    changes = {"gradient_accumulation_steps": accumulation, "max_steps": 1}
    found = {}
    for weight in (0.0, 0.5):
        model, allocator = adapted(weight)
        model.accepts_loss_kwargs = items
        penalty = allocator.penalty().item()
        found[weight] = losses(train(model, allocator, tmp_path, **changes))[0]
    assert penalty > 0.1
    assert found[0.5] - found[0.0] == pytest.approx(penalty, rel=1e-4)


def test_penalty_has_a_gradient(tmp_path: Path) -> None:
    model, allocator = adapted(100.0)
    before = allocator.penalty().item()
    train(model, allocator, tmp_path)
    assert allocator.penalty().item() < 0.99 * before


def test_steps_are_counted_from_one_with_gradients_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, allocator = adapted()
    steps = []
    real = allocator.step

    def step(global_step: int) -> None:
        steps.append(global_step)
        assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
        real(global_step)

    monkeypatch.setattr(allocator, "step", step)
    train(model, allocator, tmp_path, gradient_accumulation_steps=2)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert sum(allocator.ranks().values()) == 4  # 2 a layer, 2 layers


def test_hook_adds_only_while_training_and_is_removed(tmp_path: Path) -> None:
    model, allocator = adapted()
    ids = tokens()
    trainer = train(model, allocator, tmp_path)
    assert not model._forward_hooks
    callback = lorafam.AdaLoraCallback(allocator)
    callback.on_train_begin(trainer.args, type(trainer.state)(), trainer.control, model=model)
    callback.on_train_begin(trainer.args, type(trainer.state)(), trainer.control, model=model)
    assert len(model._forward_hooks) == 1
    model.eval()
    bare = model(ids, labels=ids).loss.item()
    with torch.no_grad():
        model.train()
        assert float(model(ids, labels=ids).loss) == pytest.approx(bare)
    assert model(ids, labels=ids).loss.item() == pytest.approx(bare + allocator.penalty().item())
    with pytest.raises(RuntimeError, match="no loss to add the penalty to"):
        model(ids)


def test_state_goes_through_trainers_checkpoints(tmp_path: Path) -> None:
    """Stopped after step 3 and resumed in plain Trainer, the run ends with the same adapter."""
    model, allocator = adapted()
    train(model, allocator, tmp_path / "whole")
    cut, its_allocator = adapted()
    train(cut, its_allocator, tmp_path / "cut", save_strategy="steps", save_steps=3)
    resumed, its_allocator = adapted()
    # nothing of the unfinished run is in memory: the state comes from the file
    train(resumed, its_allocator, tmp_path / "cut", resume=str(tmp_path / "cut" / "checkpoint-3"))
    for (name, mine), theirs in zip(resumed.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    assert its_allocator.ranks() == allocator.ranks()


def test_checkpoint_without_the_state_is_refused(tmp_path: Path) -> None:
    model, allocator = adapted()
    train(model, allocator, tmp_path, save_strategy="steps", save_steps=3)
    (tmp_path / "checkpoint-3" / "rank_allocator.pt").unlink()
    with pytest.raises(FileNotFoundError, match="no state of the rank allocator"):
        train(*adapted(), tmp_path, resume=str(tmp_path / "checkpoint-3"))
