"""Seconds a training step, lorafam against PEFT + bitsandbytes: two live models stepping in turn on the same chunks.

In turn, and turning the order about, because machines' speed drifts: each pair of steps sees the same moment. Medians
are reported.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .plan import BY_KEY, SEED, TIMED, WARMED_UP, Run


class Pace(NamedTuple):
    """Median seconds a step of both, and the median of the paired ratios (theirs over ours)."""

    ours: float
    theirs: float
    ratio: float


def measure(key: str, other_key: str, model_folder: Path, chunks: torch.Tensor) -> Pace:
    """Steps the two models of two runs in turn over `chunks` [k, length]."""
    models = [build(BY_KEY[name], model_folder) for name in (key, other_key)]
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=BY_KEY[key].learning_rate)
        for model in models
    ]
    seconds: list[list[float]] = [[], []]
    for step in range(WARMED_UP + TIMED):
        batch = chunks[step % len(chunks)][None]
        for which in (0, 1) if step % 2 else (1, 0):
            start = time.perf_counter()
            training_step(models[which], optimizers[which], batch)
            if step >= WARMED_UP:
                seconds[which].append(time.perf_counter() - start)
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    return Pace(statistics.median(seconds[0]), statistics.median(seconds[1]), statistics.median(ratios))


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    model(input_ids=batch, labels=batch, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def build(run: Run, model_folder: Path) -> nn.Module:
    """The model of a run, ready to train."""
    from transformers import AutoModelForCausalLM

    import lorafam

    from .peft_model import peft_model
    from .plan import ALPHA, RANK

    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    if run.library == "peft":
        return peft_model(model, run).train()
    config = lorafam.AdapterConfig(method=run.method, r=RANK, alpha=ALPHA, quantize=run.quantize)
    return lorafam.adapt(model, config).train()
