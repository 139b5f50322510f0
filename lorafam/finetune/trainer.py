"""transformers' Trainer for adapters: checkpoints of the adapter alone, whole or not there, and an evaluation that
says more.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler, SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..compat.trainer import Trainer
from ..interop.callbacks import AdaLoraCallback
from ..model import adapter_layers, save_adapter
from ..model.trainable import save_trainable
from . import checkpoints
from .data import TrainingSamples
from .evaluate import HeldOut, evaluate


class AdapterTrainer(Trainer):
    """Trains `samples` in their own order and evaluates `held_out` [k, length]; `evaluations` keeps the results.
    `optimizer`: its class and arguments, None for the one in `args`.
    """

    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        samples: TrainingSamples,
        held_out: torch.Tensor,
        callbacks: list[TrainerCallback],
        optimizer: tuple[type[torch.optim.Optimizer], dict[str, Any]] | None = None,
    ) -> None:
        super().__init__(
            model=model, args=args, train_dataset=samples, callbacks=callbacks, optimizer_cls_and_kwargs=optimizer
        )
        self.remove_callback(PrinterCallback)
        self.held_out = held_out
        self.evaluations: dict[int, HeldOut] = {}
        self._writing_into: Path | None = None

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """The held-out loss and its standard error; consumes no random numbers, so it changes no result."""
        result = evaluate(self.model, self.held_out)
        self.evaluations[self.state.global_step] = result
        metrics = {"held_out_loss": result.mean, "held_out_standard_error": result.standard_error}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._writing_into is None else str(self._writing_into)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        output, name = Path(self.args.output_dir), f"checkpoint-{self.state.global_step}"
        with checkpoints.staging(output) as folder:
            self._writing_into = folder
            try:
                super()._save_checkpoint(model, trial)
                for callback in self.callback_handler.callbacks:
                    if isinstance(callback, AdaLoraCallback):
                        callback.save(folder / name, self.state.global_step)
                checkpoints.publish(folder / name, output / name)
            finally:
                self._writing_into = None
        checkpoints.remove_old(output)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_adapter(self.model, folder)
        save_trainable(self.model, folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.load_trainable(self.model if model is None else model, Path(resume_from_checkpoint))


class Timetable(TrainerCallback):
    """Evaluates and saves every so many steps (0: never) and after the last one."""

    def __init__(self, evaluate_every: int, save_every: int) -> None:
        self._evaluate_every, self._save_every = evaluate_every, save_every

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        last = state.global_step >= state.max_steps
        control.should_evaluate |= last or _is_due(state.global_step, self._evaluate_every)
        control.should_save |= last or _is_due(state.global_step, self._save_every)
        return control


def write_adapter(model: nn.Module, folder: Path) -> None:
    """The adapter alone, in PEFT's format; a PEFT model writes its own."""
    if adapter_layers(model):
        save_adapter(model, folder)
    else:
        model.save_pretrained(folder)  # type: ignore[operator]


def _is_due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0
