"""Everything `finetune` can be told, with its default, its meaning and its checks.

The command line makes a flag of every field and run.yaml has a key for every field, both under the field's name.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ..config import METHODS, AdapterConfig
from .errors import InputError

SCHEDULES = ("linear", "cosine", "constant")
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("adamw", "paged_adamw", "paged_adamw_8bit")
# what may differ between the run that was interrupted and the one that goes on with it: the result is the same
FREE_ON_RESUME = ("output", "save_every", "evaluate_every", "resume")


def setting(default: Any = MISSING, *, help: str, group: str) -> Any:
    """A field with its one-line help and the group it is listed under."""
    return field(default=default, metadata={"help": help, "group": group})


@dataclass(frozen=True)
class FinetuneConfig:
    """The settings of one fine-tuning run. Raises InputError, naming the setting, for a value that can't be."""

    model: str = setting(help="Model folder, name on the hub, or .gguf file.", group="Data")
    text: str = setting(help="UTF-8 text file to train on.", group="Data")
    output: str = setting(help="Folder for the adapter, log, curves and checkpoints.", group="Data")
    sequence_length: int = setting(128, help="Text tokens in a chunk; <bos> comes on top.", group="Data")
    held_out_tokens: int = setting(4096, help="At least so many tokens are held out.", group="Data")

    method: str = setting("lora", help=f"{', '.join(list(METHODS)[:-1])} or {list(METHODS)[-1]}.", group="Adapter")
    rank: int = setting(8, help="Rank; for AdaLoRA the initial rank.", group="Adapter")
    alpha: float = setting(
        16.0, help="The scaling is alpha / rank; AdaLoRA's is alpha / initial rank.", group="Adapter"
    )
    dropout: float = setting(0.0, help="Dropout probability, in [0, 1).", group="Adapter")
    target_modules: tuple[str, ...] | None = setting(
        None, help="Endings of module names, comma-separated. [all linear layers but the head]", group="Adapter"
    )
    rslora: bool = setting(False, help="Scale by alpha / sqrt(rank).", group="Adapter")
    init: str = setting(
        "default", help="Start: default, gaussian, pissa, pissa_niter_[n], olora or loftq.", group="Adapter"
    )
    dora_norm_gradient: bool = setting(False, help="DoRA's gradient through its norm too.", group="Adapter")
    dora_dropout: str = setting("adapter", help="What DoRA's dropout drops: adapter or input.", group="Adapter")

    quantize: str | None = setting(None, help="4-bit base weights: nf4, fp4 or none.", group="Quantisation")
    double_quant: bool = setting(True, help="Quantise the absmax values too.", group="Quantisation")
    block_size: int = setting(64, help="Weights that share an absmax value.", group="Quantisation")

    target_rank: int | None = setting(None, help="Average rank left at the end. [half the rank]", group="AdaLoRA")
    adalora_warmup: int | None = setting(None, help="Steps before the first pruning. [a sixth]", group="AdaLoRA")
    adalora_final: int | None = setting(None, help="Steps after the last pruning. [a third]", group="AdaLoRA")
    adalora_interval: int | None = setting(None, help="Steps between prunings. [a fiftieth]", group="AdaLoRA")
    orthogonality: float | None = setting(None, help="Weight of the orthogonality penalty. [0.5]", group="AdaLoRA")

    steps: int = setting(100, help="Optimiser steps.", group="Training")
    batch_size: int = setting(1, help="Chunks in a forward pass.", group="Training")
    gradient_accumulation: int = setting(1, help="Forward passes in a step.", group="Training")
    learning_rate: float = setting(2e-4, help="Highest learning rate.", group="Training")
    schedule: str = setting("linear", help="Learning rate after warm-up: linear, cosine or constant.", group="Training")
    optimizer: str = setting(
        "adamw", help="adamw; paged_adamw, its states in a file or unified memory; paged_adamw_8bit.", group="Training"
    )
    warmup_steps: int = setting(0, help="Steps of linear learning rate warm-up.", group="Training")
    gradient_checkpointing: bool = setting(False, help="Less memory, one more forward pass.", group="Training")
    dtype: str = setting("float32", help="The base model's dtype: float32 or bfloat16.", group="Training")
    seed: int = setting(0, help="Seed of the adapters, the order of the chunks and dropout.", group="Training")

    save_every: int = setting(50, help="Steps between checkpoints; 0: only the last.", group="Run")
    evaluate_every: int = setting(50, help="Steps between held-out losses; 0: only first and last.", group="Run")
    resume: bool = setting(False, help="Go on from the newest checkpoint in the output folder.", group="Run")

    def __post_init__(self) -> None:
        for name in ("model", "text", "output"):
            if not getattr(self, name):
                raise InputError(f"{name}: expected a path or a name, got an empty one")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: expected at least {least}, got {value}")
        for name in ("learning_rate", "orthogonality"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name}: expected a finite number that isn't negative, got {value}")
        if self.learning_rate == 0:
            raise InputError("learning_rate: expected a positive number, got 0")
        _check_choice("schedule", self.schedule, SCHEDULES)
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.warmup_steps > self.steps:
            raise InputError(f"warmup_steps: expected at most {self.steps} (steps), got {self.warmup_steps}")
        self.adapter_config()
        self._check_adalora()

    def adapter_config(self) -> AdapterConfig:
        """What `lorafam.adapt` is given."""
        try:
            return AdapterConfig(
                method=self.method,
                r=self.rank,
                alpha=self.alpha,
                dropout=self.dropout,
                target_modules=self.target_modules,
                quantize=self.quantize,
                block_size=self.block_size,
                double_quant=self.double_quant,
                rslora=self.rslora,
                init=self.init,
                dora_dropout=self.dora_dropout,
                dora_norm_gradient=self.dora_norm_gradient,
            )
        except ValueError as error:
            message = str(error)
            raise InputError(f"rank:{message[2:]}" if message.startswith("r:") else message) from None

    def rank_schedule(self) -> dict[str, Any]:
        """The arguments of `RankAllocator`, what wasn't given filled in from `steps` and `rank`."""
        return {
            "init_rank": self.rank,
            "target_rank": _given(self.target_rank, max(1, self.rank // 2)),
            "total_steps": self.steps,
            "warmup_steps": _given(self.adalora_warmup, self.steps // 6),
            "final_steps": _given(self.adalora_final, self.steps // 3),
            "interval": _given(self.adalora_interval, max(1, self.steps // 50)),
            "orthogonality": _given(self.orthogonality, 0.5),
        }

    def _check_adalora(self) -> None:
        if not METHODS[self.method].allocates_ranks:
            for name in ADALORA_SETTINGS:
                if getattr(self, name) is not None:
                    raise InputError(f"{name}: the method {self.method!r} allocates no ranks and has none")
            return
        schedule = self.rank_schedule()
        if schedule["target_rank"] > self.rank:
            raise InputError(f"target_rank: expected at most {self.rank} (rank), got {schedule['target_rank']}")
        if schedule["warmup_steps"] + schedule["final_steps"] >= self.steps:
            raise InputError(
                f"adalora_warmup, adalora_final: expected together fewer than {self.steps} (steps), "
                f"got {schedule['warmup_steps']} and {schedule['final_steps']}"
            )


ADALORA_SETTINGS = tuple(item.name for item in fields(FinetuneConfig) if item.metadata["group"] == "AdaLoRA")
_LEAST = {
    "sequence_length": 2,
    "held_out_tokens": 1,
    "target_rank": 1,
    "adalora_warmup": 0,
    "adalora_final": 0,
    "adalora_interval": 1,
    "steps": 1,
    "batch_size": 1,
    "gradient_accumulation": 1,
    "warmup_steps": 0,
    "seed": 0,
    "save_every": 0,
    "evaluate_every": 0,
}


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
