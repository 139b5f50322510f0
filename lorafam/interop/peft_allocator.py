"""PEFT's own rank allocation, as `AdaLoraCallback` drives it: nobody else calls it in transformers' Trainer."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .sharded import is_sharded

_AVERAGES = ("ipt", "exp_avg_ipt", "exp_avg_unc")


class PeftAllocator:
    """Steps the allocator of PEFT's AdaLoRA in a model, and saves what PEFT doesn't: its averages.

    Raises TypeError for another model, NotImplementedError for a sharded one. Warns where the schedule ends at another
    step than training does.
    """

    def __init__(self, model: nn.Module, total_steps: int) -> None:
        self._model: Any = model
        found = find_tuner(model)
        if found is None:
            raise TypeError(
                f"model: AdaLoraCallback() without an allocator expected PEFT's AdaLoRA, got a {type(model).__name__}"
            )
        self._tuner: Any = found
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

    def hooks(self, processes: int) -> list[RemovableHandle]:
        """Hooks by which the penalty is added where PEFT's tuner isn't called, and by which each process adds its share
        where Trainer adds up the processes' losses: those that are divided by the items of all.
        """
        config, weight = self._config, self._config.orth_reg_weight

        def begin(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            if kwargs.get("num_items_in_batch") is not None:
                config.orth_reg_weight = weight / processes

        def add(model: nn.Module, args: Any, output: Any) -> Any:
            return self._tuner.penalised(output) if model.training and torch.is_grad_enabled() else output

        def end(*_: Any) -> None:
            config.orth_reg_weight = weight

        around = self._tuner if isinstance(self._tuner, nn.Module) else self._model
        made = []
        if around is not self._tuner:
            made.append(around.register_forward_hook(add))
        if processes > 1:
            made.append(around.register_forward_pre_hook(begin, with_kwargs=True))
            made.append(around.register_forward_hook(end, always_call=True))
        return made

    def save_whole(self, folder: Path) -> None:
        """Writes the adapter with all of its ranks, zeros among them, over what PEFT wrote: it keeps the surviving
        ranks alone, in a size that a model which goes on training can't load.
        """
        if not hasattr(self._model, "save_pretrained"):
            # Trainer has written a state dict, which is whole
            return
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
        device = next(self._model.parameters()).device
        for name in _AVERAGES:
            setattr(self._tuner.rankallocator, name, {key: value.to(device) for key, value in state[name].items()})
        self._config.rank_pattern = state["rank_pattern"] or None


class Injected:
    """What PEFT's tuner has of allocation, for adapters in a model that no tuner is around."""

    def __init__(self, model: Any, adapter: str) -> None:
        from peft import AdaLoraModel
        from peft.tuners.adalora import RankAllocator

        self.model, self.trainable_adapter_name = model, adapter
        self.peft_config = model.peft_config
        self.rankallocator = RankAllocator(model, self.peft_config[adapter], adapter)
        self._class: Any = AdaLoraModel

    def update_and_allocate(self, global_step: int) -> None:
        self._class.update_and_allocate(self, global_step)

    def penalised(self, output: Any) -> Any:
        """The output with PEFT's penalty in its loss, if it has one."""
        model = SimpleNamespace(forward=lambda: output, named_parameters=self.model.named_parameters)
        around = SimpleNamespace(
            model=model, peft_config=self.peft_config, trainable_adapter_name=self.trainable_adapter_name
        )
        return self._class.forward(around)


def find_tuner(model: nn.Module) -> Any:
    """PEFT's AdaLoRA tuner in a model, or what stands for it where adapters were injected; None where neither is."""
    for module in model.modules():
        if hasattr(module, "update_and_allocate"):
            return module
    for module in model.modules():
        configs: Any = module.__dict__.get("peft_config")
        for name, config in configs.items() if isinstance(configs, dict) else ():
            if str(getattr(config.peft_type, "value", "")) == "ADALORA" and not config.inference_mode:
                return Injected(module, name)
    return None


def expect_whole(model: nn.Module) -> None:
    """For PEFT's AdaLoRA: the file that is loaded next has all ranks, not those that are kept now."""
    found = find_tuner(model)
    if found is not None:
        found.peft_config[found.trainable_adapter_name].rank_pattern = None
