"""transformers' Trainer on a row's model, broken off and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .models import Made, factors

STEPS, BREAK = 4, 2
DROPOUT = 0.1


def resumed_as_whole(made: Made, folder: Path) -> None:
    """Raises AssertionError where the resumed run ends in other bits, or nothing was trained."""
    start = {name: factor.detach().clone() for name, factor in factors(made.new_ours())}
    whole = _trained(made, folder / "whole", None)
    again = _trained(made, folder / "again", folder / "whole" / f"checkpoint-{BREAK}")
    still = [name for name, value in whole.items() if torch.equal(value, start[name])]
    assert len(still) < len(whole) / 2, f"Trainer: {len(still)} of {len(whole)} tensors weren't trained"
    other = [name for name, value in again.items() if not torch.equal(value, whole[name])]
    assert not other, f"Trainer: {len(other)} of {len(whole)} tensors differ after resuming, {other[0]} for example"


def _trained(made: Made, folder: Path, resume: Path | None) -> dict[str, torch.Tensor]:
    from transformers import Trainer, TrainingArguments

    # PEFT refuses dropout beside adapted parameters
    dropout = 0.0 if made.row.parameters and not made.way.own else DROPOUT
    model = made.new_ours(dropout).train()
    arguments = TrainingArguments(
        str(folder),
        max_steps=STEPS,
        save_steps=BREAK,
        learning_rate=1e-2,
        per_device_train_batch_size=1,
        remove_unused_columns=False,
        logging_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
    )

    def collated(seeds: list[dict[str, int]]) -> dict[str, Any]:
        return made.row.inputs(model.config, seeds[0]["seed"])

    data: Any = [{"seed": seed} for seed in range(10, 10 + 2 * STEPS)]
    Trainer(model, arguments, train_dataset=data, data_collator=collated).train(
        resume_from_checkpoint=None if resume is None else str(resume)
    )
    return {name: factor.detach().clone() for name, factor in factors(model)}
