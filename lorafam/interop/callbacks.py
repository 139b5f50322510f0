"""AdaLoRA in transformers' Trainer: `Trainer(..., callbacks=[AdaLoraCallback(allocator)])`, or, for PEFT's AdaLoRA,
`AdaLoraCallback()`.

Trainer knows nothing of rank allocation, so two things happen in every optimiser step: the orthogonality penalty is
added to the model's loss, by a forward hook while the model trains (PEFT does it in AdaLoraModel.forward), and the
allocator steps when the optimiser has, while gradients are still there. The allocator's state goes into Trainer's
checkpoints and comes back from them. A PEFT model adds the penalty itself.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..backends.selection import SlowPathWarning
from ..compat.torch import active_ddp
from ..config import check_flag
from ..files import write_whole
from ..model.pretrained import replace_trainers_steps
from ..optim.rank_allocator import ALLOCATOR, RankAllocator
from .peft_allocator import PeftAllocator, expect_whole


class AdaLoraCallback(TrainerCallback):
    """Steps a `RankAllocator`, or, without one, that of PEFT's AdaLoRA in the model which is trained: of a PeftModel,
    or injected (`add_adapter`, `inject_adapter_in_model`).

    `compact`: a `RankAllocator`'s pruned ranks are removed once they are chosen for good (`RankAllocator.compact`), but
    for an optimiser with 8-bit states of blocks, which a warning says; False keeps them, and with them PEFT's penalty
    to the end.
    `penalty` is what the last optimiser step's loss had added by a `RankAllocator`, 0-dimensional, detached.
    """

    def __init__(self, allocator: RankAllocator | None = None, *, compact: bool = True) -> None:
        if allocator is not None and not isinstance(allocator, RankAllocator):
            raise TypeError(f"allocator: expected a RankAllocator or None, got {type(allocator).__name__}")
        check_flag("compact", compact)
        self.allocator: RankAllocator | PeftAllocator | None = allocator
        self.penalty = torch.zeros(())
        self._hooks: list[RemovableHandle] = []
        self._compact = compact
        self._ddp: DistributedDataParallel | None = None
        self._processes = 1
        self._due = True
        self._saved_step = -1
        self._loaded_from: Path | None = None
        replace_trainers_steps()

    def on_load_checkpoint(self, model: nn.Module, folder: Path) -> None:
        """Called before a checkpoint is loaded into the model."""
        self._loaded_from = folder
        if not isinstance(self.allocator, RankAllocator) and (folder / ALLOCATOR).is_file():
            expect_whole(model)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not isinstance(self.allocator, RankAllocator):
            self.allocator = PeftAllocator(kwargs["model"], state.max_steps)
        if state.global_step > 0:
            self.load(self._loaded_from or Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self._loaded_from = None
        self._remove_hooks()
        self._processes = args.world_size if args.average_tokens_across_devices else 1
        if isinstance(self.allocator, RankAllocator):
            self._hooks = [kwargs["model"].register_forward_hook(self._add_penalty, with_kwargs=True)]
        else:
            self._hooks = self.allocator.hooks(self._processes)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._due = True

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Trainer counts the step later; PEFT's allocator counts from 1
        step = state.global_step + 1
        self._known.step(step)
        if self._compact and isinstance(self.allocator, RankAllocator) and step == self.allocator.last_pruning:
            try:
                self.allocator.compact(kwargs["optimizer"], self._ddp)
            except NotImplementedError as error:
                warnings.warn(
                    f"AdaLoraCallback: pruned ranks stay where they are: {error}", SlowPathWarning, stacklevel=2
                )

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._saved_step != state.global_step and args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            if isinstance(self.allocator, PeftAllocator):
                self.allocator.save_whole(folder)
            self.save(folder, state.global_step)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._remove_hooks()
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if best is not None and (Path(best) / ALLOCATOR).is_file():
            # Trainer has loaded that one's adapter
            self.load(Path(best))

    @property
    def _known(self) -> RankAllocator | PeftAllocator:
        if self.allocator is None:
            raise RuntimeError("AdaLoraCallback: training hasn't begun, the PEFT model isn't known yet")
        return self.allocator

    def save(self, folder: Path, step: int) -> None:
        """Writes the allocator's state into a checkpoint's folder, under a temporary name first."""
        write_whole(folder / ALLOCATOR, lambda temporary: torch.save(self._known.state_dict(), temporary))
        self._saved_step = step

    def load(self, folder: Path) -> None:
        """Reads it back. Raises FileNotFoundError where the checkpoint has none."""
        path = folder / ALLOCATOR
        if not path.is_file():
            raise FileNotFoundError(f"{path}: the checkpoint has no state of the rank allocator")
        self._known.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))

    def _add_penalty(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not model.training or not torch.is_grad_enabled():
            return output
        # Trainer tells a callback nothing of the wrapper, which runs this forward
        self._ddp = active_ddp()
        loss = output.get("loss") if isinstance(output, dict) else None
        if loss is None:
            raise RuntimeError("AdaLoraCallback: the model's output has no loss to add the penalty to")
        # A loss divided by all items of the step is summed over the step's forward passes: the penalty counts in one
        # of them. Otherwise Trainer averages the passes, and it counts in each.
        summed = kwargs.get("num_items_in_batch") is not None
        if summed and not self._due:
            return output
        self._due = False
        assert isinstance(self.allocator, RankAllocator)
        penalty = self.allocator.penalty()
        self.penalty = penalty.detach()
        share = penalty / self._processes if summed else penalty
        output["loss"] = loss + share.to(loss.dtype)
        return output

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
