"""PEFT's own rank allocation, as `AdaLoraCallback` drives it: nobody else calls it in transformers' Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..interop.sharded import is_sharded

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class PeftAllocator:
    """Steps the allocator of a PEFT AdaLoRA model, and saves what PEFT doesn't: its averages.

    Raises TypeError for another model, NotImplementedError for a sharded one. Warns where the schedule ends at another
    step than training does.
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self._model: Any = model
        self._tuner: Any = getattr(model, "base_model", None)
        if not hasattr(self._tuner, "update_and_allocate"):
            raise TypeError(
                f"model: AdaLoraCallback() without an allocator expected PEFT's AdaLoRA, got a {type(model).__name__}"
            )
        if any(map(is_sharded, model.parameters())):
            raise NotImplementedError(
                "model: AdaLoRA's allocation needs whole parameters, FSDP2 shards them; train it with DDP"
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

    def share_penalty(self, processes: int) -> list[RemovableHandle]:
        """Hooks by which each process adds its share of the penalty where Trainer adds up the processes' losses: those
        that are divided by the items of all.
        """
        config, weight = self._config, self._config.orth_reg_weight

        def begin(tuner: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if kwargs.get("num_items_in_batch") is not None:
                config.orth_reg_weight = weight / processes

        def end(*_: Any) -> None:
            config.orth_reg_weight = weight

        return [
            self._tuner.register_forward_pre_hook(begin, with_kwargs=True),
            self._tuner.register_forward_hook(end, always_call=True),
        ]

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
