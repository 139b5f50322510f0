"""`finetune`: adapts a causal language model, trains it on a text and leaves the adapter, a log and curves.

The loop is transformers' Trainer. The run can be killed at any moment: `resume=True` goes on from the newest whole
checkpoint, to the same result.
"""

from __future__ import annotations

import dataclasses
import gc
import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..interop.callbacks import AdaLoraCallback
from ..model import adapt, adapter_layers
from ..optim.rank_allocator import RankAllocator
from .arguments import paged_optimizer, training_arguments
from .base_model import check_length, check_model_path, load_base_model, load_tokenizer
from .checkpoints import publish, remove_unfinished, staging
from .curves import plot_curves
from .data import TextChunks, TrainingSamples, load_chunks, read_text
from .errors import InputError, one_line
from .evaluate import HeldOut, evaluate
from .interrupt import termination_interrupts
from .memory import PeakMemory, release_freed, resident
from .recorder import Recorder, Reporter, SilentReporter
from .result import FinetuneResult
from .run_folder import RunFolder
from .run_log import RunLog
from .settings import FinetuneConfig
from .trainer import AdapterTrainer, Timetable, write_adapter


def finetune(
    config: FinetuneConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    reporter: Reporter | None = None,
    before: HeldOut | None = None,
) -> FinetuneResult:
    """Trains as `config` says.

    `model` and `tokenizer` may be given instead of loaded. A model that has adapters already, lorafam's or PEFT's, is
    trained with those (PEFT's AdaLoRA, which needs PEFT's own schedule, is refused); a bare one is adapted. Training
    then is the same in every respect. `before` is the held-out loss of the bare model where it is known already, from
    another run over the same base and text.

    Raises InputError for anything wrong in the settings, the text, the model or the output folder, before training;
    DivergedError when the loss isn't finite; KeyboardInterrupt on Ctrl-C and SIGTERM. The output folder can be
    resumed after any of the latter.
    """
    reporter = reporter or SilentReporter()
    if model is None:
        check_model_path(config.model)
    read_text(config.text)
    config = _with_absolute_paths(config)
    with termination_interrupts(), RunFolder(config) as folder:
        checkpoint, damaged = folder.open()
        for wrong in damaged:
            reporter.note(f"passed over: {wrong}")
        if config.resume:
            reporter.note(
                f"resuming from {checkpoint.name}" if checkpoint else "no checkpoint to go on from, starting over"
            )
        reporter.note(f"loading {Path(config.model).name}")
        tokenizer = tokenizer or load_tokenizer(config.model)
        chunks = load_chunks(config.text, tokenizer, config.sequence_length, config.held_out_tokens)
        if before is not None and len(before.losses) != len(chunks.held_out):
            raise InputError(f"before: expected {len(chunks.held_out)} chunks, got {len(before.losses)}")
        before = folder.read_before(chunks.text_sha256) or before
        model = model if model is not None else load_base_model(config.model, config.dtype)
        check_length(model, chunks.train.shape[1])
        model = _prepare(model, config)
        try:
            return _train(model, chunks, before, folder, checkpoint, reporter)
        except KeyboardInterrupt:
            remove_unfinished(folder.path)
            raise


def _train(
    model: Any,
    chunks: TextChunks,
    before: HeldOut | None,
    folder: RunFolder,
    checkpoint: Path | None,
    reporter: Reporter,
) -> FinetuneResult:
    config = folder.config
    log = RunLog(folder.log, resume_at=_step_of(checkpoint) if checkpoint else None)
    adalora = _adalora_callback(model, config)
    tokens = config.batch_size * config.gradient_accumulation * chunks.train.shape[1]
    callbacks: list[TrainerCallback] = [Timetable(config.evaluate_every, config.save_every)]
    callbacks += [adalora] if adalora else []
    callbacks += [Recorder(log, reporter, tokens, adalora)]
    arguments = training_arguments(config)
    samples = config.steps * config.batch_size * config.gradient_accumulation
    trainer = AdapterTrainer(
        model,
        arguments,
        TrainingSamples(chunks.train, samples, config.seed),
        chunks.held_out,
        callbacks,
        paged_optimizer(config, arguments),
    )
    gc.collect()
    release_freed()
    loaded = resident()
    # of AdaLoRA fewer are left at the end
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if before is not None:
        folder.write_held_out(chunks.text_sha256, before)
    else:
        reporter.note(f"held-out loss of the bare model, {chunks.predicted_tokens} tokens")
        # adapters start as the identity, so this is also right where training goes on from a checkpoint
        before = evaluate(trainer.model, chunks.held_out)
        folder.write_held_out(chunks.text_sha256, before)
    if checkpoint is None:
        log.write({"step": 0, "held_out_loss": before.mean, "held_out_standard_error": before.standard_error})
    done = len(log.records)
    reporter.begin(_step_of(checkpoint) if checkpoint else 0, config.steps)
    try:
        with PeakMemory() as memory:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        reporter.end()
    after = trainer.evaluations.get(config.steps) or evaluate(trainer.model, chunks.held_out)
    folder.write_held_out(chunks.text_sha256, before, after)
    with staging(folder.path) as unfinished:
        write_adapter(model, unfinished / folder.adapter.name)
        publish(unfinished / folder.adapter.name, folder.adapter)
    plot_curves(log.records, folder.curves, f"{config.method}, rank {config.rank}, {Path(config.model).name}")
    return FinetuneResult(
        config=config,
        before=before,
        after=after,
        step_seconds=tuple(record["seconds"] for record in log.records[done:] if "seconds" in record),
        trainable_parameters=trained,
        resident_after_loading=loaded,
        peak_resident=memory.peak,
        memory_source=memory.source,
        adapter=folder.adapter,
        log=folder.log,
        curves=folder.curves,
    )


def _prepare(model: Any, config: FinetuneConfig) -> Any:
    if hasattr(model, "peft_config"):
        if any(item.peft_type == "ADALORA" for item in model.peft_config.values()):
            raise InputError("model: PEFT's AdaLoRA needs PEFT's own schedule; give the bare model")
        return model
    if adapter_layers(model):
        return model
    torch.manual_seed(config.seed)
    try:
        adapt(model, config.adapter_config())
    except (TypeError, ValueError) as error:
        raise InputError(one_line(error)) from error
    return model


def _adalora_callback(model: Any, config: FinetuneConfig) -> AdaLoraCallback | None:
    if not any(layer.allocates_ranks for layer in adapter_layers(model).values()):
        return None
    return AdaLoraCallback(RankAllocator(model, **config.rank_schedule()))


def _with_absolute_paths(config: FinetuneConfig) -> FinetuneConfig:
    """Paths that hold from any working directory; a name on the hub stays one."""
    model = os.path.abspath(config.model) if os.path.exists(config.model) else config.model
    return dataclasses.replace(
        config, model=model, text=os.path.abspath(config.text), output=os.path.abspath(config.output)
    )


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
