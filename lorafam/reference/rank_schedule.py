"""AdaLoRA's budget of ranks over all layers, step by step, and which ranks it keeps (arXiv 2303.10512, section 3.3).

    b(t) = b₀                                               t <= t_i
           b₁ + (b₀ - b₁) (1 - (t - t_i) / (T - t_i - t_f))³   between, rounded down
           b₁                                               t > T - t_f

with T total_steps, t_i warmup_steps, t_f final_steps, b₀ and b₁ the initial and target rank times the number of layers.
Numbered and rounded as PEFT does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Budget(NamedTuple):
    """How many ranks may remain over all layers, and whether ranks are pruned to it at this step."""

    ranks: int
    prune: bool


def budget(
    step: int,
    *,
    initial_ranks: int,
    target_ranks: int,
    total_steps: int,
    warmup_steps: int,
    final_steps: int,
    interval: int,
) -> Budget:
    """The budget at `step` (counted from 1 by Trainer). Raises ValueError where no step is left for pruning.

    Between warm-up and the final phase ranks are pruned at each multiple of `interval`. At step T - t_f the budget has
    come down to the target: the caller prunes there, whether or not `interval` divides it, and keeps that choice.
    """
    if warmup_steps < 0 or final_steps < 0 or warmup_steps + final_steps >= total_steps:
        raise ValueError(
            "warmup_steps, final_steps: expected them not negative and together below total_steps, "
            f"got {warmup_steps} and {final_steps} of {total_steps}"
        )
    if interval < 1:
        raise ValueError(f"interval: expected at least 1, got {interval}")
    if not 0 <= target_ranks <= initial_ranks:
        raise ValueError(f"target_ranks: expected 0 to {initial_ranks} (initial_ranks), got {target_ranks}")
    if step <= warmup_steps:
        return Budget(initial_ranks, prune=False)
    if step > total_steps - final_steps:
        return Budget(target_ranks, prune=True)
    left = 1 - (step - warmup_steps) / (total_steps - final_steps - warmup_steps)
    return Budget(int((initial_ranks - target_ranks) * left**3 + target_ranks), prune=step % interval == 0)


def keep_mask(scores: Tensor, ranks: int) -> Tensor:
    """Which of all layers' triplets, scores [total], stay within a budget of `ranks`: bool [total].

    The threshold is the largest score to go, and all at or below it go: ties with it are pruned too, as in PEFT.
    A budget of all of them keeps all, where PEFT asks for the 0-th smallest score and fails (its issue 2337).
    """
    if not 0 <= ranks <= scores.numel():
        raise ValueError(f"ranks: expected 0 to {scores.numel()}, the number of scores, got {ranks}")
    prune = scores.numel() - ranks
    if prune == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # kthvalue would raise on a GPU in torch's deterministic mode
    return ~(scores <= scores.sort().values[prune - 1])
