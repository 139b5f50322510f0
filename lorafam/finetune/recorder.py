"""Turns Trainer's events into records: for log.jsonl and for whoever watches."""

from __future__ import annotations

import math
import time
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..interop.callbacks import AdaLoraCallback
from .errors import DivergedError
from .run_log import Record, RunLog


class Reporter(Protocol):
    """What is told about a run while it goes on."""

    def note(self, text: str) -> None:
        """Something a user should know: what is being done, what was found."""

    def begin(self, done: int, total: int) -> None:
        """Training starts, `done` of `total` steps having been made before."""

    def step(self, record: Record) -> None:
        """A step was made."""

    def end(self) -> None:
        """Training has ended, or was ended."""


class SilentReporter:
    """Tells nothing."""

    def note(self, text: str) -> None:
        return

    def begin(self, done: int, total: int) -> None:
        return

    def step(self, record: Record) -> None:
        return

    def end(self) -> None:
        return


class Recorder(TrainerCallback):
    """Writes a record a step. Raises DivergedError when the loss isn't finite."""

    def __init__(self, log: RunLog, reporter: Reporter, tokens: int, adalora: AdaLoraCallback | None) -> None:
        self._log, self._reporter, self._tokens, self._adalora = log, reporter, tokens, adalora
        self._started = 0.0
        self._seconds = 0.0
        self._pending: Record = {}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._seconds = time.perf_counter() - self._started

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        record: Record = {"step": state.global_step, "loss": logs["loss"]}
        if self._adalora is not None:
            record["penalty"] = float(self._adalora.penalty)
            record["loss"] -= record["penalty"]
        if not math.isfinite(record["loss"]):
            raise DivergedError(f"loss: not finite at step {state.global_step}; try a lower learning_rate")
        record["learning_rate"] = logs["learning_rate"]
        record["gradient_norm"] = logs["grad_norm"]
        record["seconds"] = self._seconds
        record["tokens_per_second"] = self._tokens / self._seconds
        self._pending = record
        # at a step that is evaluated, the line waits for the held-out loss
        if not control.should_evaluate:
            self._write({})

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        self._write(metrics or {})

    def _write(self, metrics: dict[str, float]) -> None:
        self._reporter.step(self._log.write({**self._pending, **metrics}))
