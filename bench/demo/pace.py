"""Seconds a training step, of it in the adapted layers, and for generating with the unmerged adapter: lorafam against
PEFT + bitsandbytes, two live models in turn on the same chunks.

In turn, and turning the order about, because machines' speed drifts: each pair of steps sees the same moment. Medians
are reported.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from .layer_clock import LayerClock
from .plan import BY_KEY, GENERATED, PROMPT, SEED, TIMED, TURNS, WARMED_UP, Run


class Pace(NamedTuple):
    """Median seconds of both, the median of the paired ratios (theirs over ours), and the bounds between which that
    median lies with 90 % confidence (of order statistics).
    """

    ours: float
    theirs: float
    ratio: float
    least: float
    most: float


class Paces(NamedTuple):
    """A training step, its part in the adapted layers, and `GENERATED` tokens one after the other; then a step of the
    peer's own model, accelerated in place ("ours") and not.
    """

    step: Pace
    layers: Pace
    generation: Pace
    accelerated: Pace


def measure(key: str, other_key: str, model_folder: Path, chunks: torch.Tensor) -> Paces:
    """Steps the two models of two runs in turn over `chunks` [k, length], then lets both generate."""
    models = [build(BY_KEY[name], model_folder) for name in (key, other_key)]
    optimizers = [
        torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=BY_KEY[key].learning_rate)
        for model in models
    ]
    clocks = [LayerClock(model, _layers_of(BY_KEY[name])) for model, name in zip(models, (key, other_key), strict=True)]
    seconds: list[list[float]] = [[], []]
    inside: list[list[float]] = [[], []]
    for step in range(WARMED_UP + TIMED):
        batch = chunks[step % len(chunks)][None]
        for which in (0, 1) if step % 2 else (1, 0):
            start = time.perf_counter()
            training_step(models[which], optimizers[which], batch)
            taken, spent = time.perf_counter() - start, clocks[which].taken()
            if step >= WARMED_UP:
                seconds[which].append(taken)
                inside[which].append(spent)
    for clock in clocks:
        clock.remove()
    accelerated = _accelerated(models[1], optimizers[1], chunks)
    generation = _generation([model.eval() for model in models], chunks[:1, :PROMPT])
    return Paces(_pace(seconds), _pace(inside), generation, accelerated)


def _accelerated(model: nn.Module, optimizer: torch.optim.Optimizer, chunks: torch.Tensor) -> Pace:
    """Steps of one PEFT model, with `lorafam.accelerate` and without, in turn."""
    import lorafam

    seconds: list[list[float]] = [[], []]
    for step in range(TIMED):
        lorafam.accelerate(model) if step % 2 else lorafam.decelerate(model)
        start = time.perf_counter()
        training_step(model, optimizer, chunks[step // 2 % len(chunks)][None])
        seconds[0 if step % 2 else 1].append(time.perf_counter() - start)
    lorafam.decelerate(model)
    return _pace([times[1:] for times in seconds])


def _generation(models: list[nn.Module], prompt: torch.Tensor) -> Pace:
    seconds: list[list[float]] = [[], []]
    for turn in range(1 + TURNS):
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            models[which].generate(  # type: ignore[operator]
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=GENERATED,
                min_new_tokens=GENERATED,
                do_sample=False,
            )
            if turn:
                seconds[which].append(time.perf_counter() - start)
    return _pace(seconds)


def _pace(seconds: list[list[float]]) -> Pace:
    ratios = [theirs / ours for ours, theirs in zip(*seconds, strict=True)]
    return Pace(statistics.median(seconds[0]), statistics.median(seconds[1]), *median_within(ratios))


def median_within(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the values between which the median of what they are drawn from lies with at least 90 %: fewer
    than k of n values lie on one side of it with probability Σ C(n, i) / 2ⁿ over i < k. All of a few values.
    """
    ordered = sorted(values)
    n, outside = len(ordered), 0
    while 2 * outside < n - 1 and sum(math.comb(n, i) for i in range(outside + 1)) / 2**n <= 0.05:
        outside += 1
    # the outside-th from either end, counted from 1
    last = max(outside, 1) - 1
    return statistics.median(ordered), ordered[last], ordered[n - 1 - last]


def _layers_of(run: Run) -> tuple[type, ...]:
    """The classes of a library's adapted layers."""
    if run.library == "peft":
        from peft.tuners.tuners_utils import BaseTunerLayer

        return (BaseTunerLayer,)
    from lorafam.methods import AdapterLayer

    return (AdapterLayer,)


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
