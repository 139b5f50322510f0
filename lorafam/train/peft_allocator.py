"""PEFT's own rank allocation, as `AdaLoraCallback` drives it: nobody else calls it in transformers' Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class PeftAllocator:
    """Steps the allocator of a PEFT AdaLoRA model, and saves what PEFT doesn't: its averages.

    Raises TypeError for another model. Warns where the schedule ends at another step than training does.
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self._model: Any = model
        self._tuner: Any = getattr(model, "base_model", None)
        if not hasattr(self._tuner, "update_and_allocate"):
            raise TypeError(
                f"model: AdaLoraCallback() without an allocator expected PEFT's AdaLoRA, got a {type(model).__name__}"
            )
        if self._config.total_step != total_steps:
            warnings.warn(
                f"AdaLoraConfig.total_step is {self._config.total_step}, training ends at step {total_steps}: "
                "the ranks' schedule ends at another time",
                stacklevel=2,
            )

    @property
    def _config(self) -> Any:
        return self._tuner.peft_config[self._tuner.trainable_adapter_name]

    def step(self, global_step: int) -> None:
        """After `optimizer.step()`, while gradients are there; steps count from 1."""
        self._tuner.update_and_allocate(global_step)

    def save_whole(self, folder: Path) -> None:
        """Writes the adapter with all of its ranks, zeros among them, over what PEFT wrote: it keeps the surviving
        ranks alone, in a size that a model which goes on training can't load.
        """
        config, pattern = self._config, self._config.rank_pattern
        config.rank_pattern = None
        try:
            self._model.save_pretrained(folder)
        finally:
            config.rank_pattern = pattern

    def state_dict(self) -> dict[str, Any]:
        averages = {name: dict(getattr(self._tuner.rankallocator, name)) for name in _AVERAGES}
        return {**averages, "rank_pattern": dict(self._config.rank_pattern or {})}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        device = next(self._tuner.parameters()).device
        for name in _AVERAGES:
            setattr(self._tuner.rankallocator, name, {key: value.to(device) for key, value in state[name].items()})
        self._config.rank_pattern = state["rank_pattern"] or None
