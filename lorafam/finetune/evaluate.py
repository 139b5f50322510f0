"""The loss on held-out chunks: mean, standard error, and the paired difference of two evaluations.

    mean = Σ lᵢ / k      standard error = √(Σ (lᵢ − mean)² / (k − 1) / k)

lᵢ is the mean next-token cross-entropy (nats) of chunk i, all chunks being equally long.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class HeldOut:
    """The loss of each held-out chunk, in the order of the text."""

    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.losses) / len(self.losses)

    @property
    def standard_error(self) -> float:
        return _standard_error(self.losses)

    def fall_to(self, later: HeldOut) -> tuple[float, float]:
        """How far the loss fell from here to `later`, paired by chunk: mean difference and its standard error.

        Raises ValueError when the two have different numbers of chunks.
        """
        if len(self.losses) != len(later.losses):
            raise ValueError(f"later: expected {len(self.losses)} chunks, got {len(later.losses)}")
        differences = [before - after for before, after in zip(self.losses, later.losses, strict=True)]
        return sum(differences) / len(differences), _standard_error(differences)


def evaluate(model: nn.Module, chunks: torch.Tensor) -> HeldOut:
    """The loss of a causal language model on each of chunks [k, length]; one at a time, so memory is that of one.

    The model's mode and torch's random state are as before afterwards: evaluating changes no training result.
    """
    training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            losses = [float(_loss(model, chunk[None].to(device))) for chunk in chunks]
    finally:
        model.train(training)
    return HeldOut(tuple(losses))


def _loss(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def _standard_error(values: Sequence[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
