"""The settings of a run as transformers' `TrainingArguments`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainingArguments

from ..compat.transformers import checkpointing_field, use_one_gpu
from ..optim.paged_adamw import PagedAdamW
from .settings import FinetuneConfig

_SCHEDULES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def training_arguments(config: FinetuneConfig) -> TrainingArguments:
    """What Trainer is told. Saving and evaluating are `Timetable`'s, reporting is `Recorder`'s.

    What isn't set here is Trainer's default: AdamW's betas, gradients clipped at norm 1, no weight decay.
    """
    checkpointing = checkpointing_field(TrainingArguments)
    arguments = TrainingArguments(
        output_dir=config.output,
        max_steps=config.steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type=_SCHEDULES[config.schedule],
        warmup_steps=config.warmup_steps,
        optim="adamw_torch_fused",
        seed=config.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
        **{checkpointing: config.gradient_checkpointing, f"{checkpointing}_kwargs": {"use_reentrant": False}},
    )
    if arguments.n_gpu > 1:
        # several GPUs in one process would mean nn.DataParallel, which copies the layers at every step
        use_one_gpu(arguments)
    return arguments


def paged_optimizer(
    config: FinetuneConfig, arguments: TrainingArguments
) -> tuple[type[PagedAdamW], dict[str, Any]] | None:
    """`PagedAdamW` and its arguments as Trainer takes them, or None for Trainer's own AdamW. On the CPU its states lie
    on the output folder's disk.
    """
    if config.optimizer == "adamw":
        return None
    return PagedAdamW, {
        "lr": arguments.learning_rate,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
        "bits": 8 if config.optimizer == "paged_adamw_8bit" else 32,
        "page_file": arguments.output_dir if arguments.device.type == "cpu" else None,
    }
