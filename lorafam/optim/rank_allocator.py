"""AdaLoRA's allocation of ranks over a model's layers while it trains (arXiv 2303.10512, algorithm 1; numbered as in
PEFT).

t < T − t_f    update the importance of every triplet; where the schedule says so, keep the b(t) most important, zero
the others' E
t = T − t_f    prune to the target for good, and remember which ranks were kept
t > T − t_f    keep the other ranks at zero
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import functional as F
from ..config import check_count, check_rank, check_weight
from ..methods import AdaLoraLinear
from ..model.adapt import adapter_layers
from ..reference import budget, keep_mask
from .compaction import compact_layers

# the file of its state in a checkpoint
ALLOCATOR = "rank_allocator.pt"

Tensor = torch.Tensor


class RankAllocator:
    """Prunes the ranks of a model's AdaLoRA layers from `init_rank` to `target_rank` a layer on average.

    Steps are optimiser steps: `warmup_steps` (t_i) without pruning, `final_steps` (t_f) after the last, pruning each
    `interval` (ΔT) between. `orthogonality` weighs `penalty()`. Raises ValueError for a model without AdaLoRA layers or
    a schedule without room.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        init_rank: int,
        target_rank: int,
        total_steps: int,
        warmup_steps: int,
        final_steps: int,
        interval: int,
        beta1: float = 0.85,
        beta2: float = 0.85,
        orthogonality: float = 0.5,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
        check_rank("init_rank", init_rank)
        check_count("target_rank", target_rank, 0)
        check_count("total_steps", total_steps)
        check_count("warmup_steps", warmup_steps, 0)
        check_count("final_steps", final_steps, 0)
        check_count("interval", interval)
        check_weight("orthogonality", orthogonality)
        layers = adapter_layers(model)
        adapted = {path: one for path, one in layers.items() if isinstance(one, AdaLoraLinear) and one.has_active}
        if not adapted:
            raise ValueError("model: expected AdaLoRA layers, it has none")
        for path, layer in adapted.items():
            if layer.rank_num != init_rank:
                raise ValueError(f"init_rank: expected {layer.rank_num}, the rank of {path!r}, got {init_rank}")
        for name, beta in (("beta1", beta1), ("beta2", beta2)):
            if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < 1:
                raise ValueError(f"{name}: expected a number between 0 and 1, got {beta!r}")
        self._layers = adapted
        self._schedule = {
            "initial_ranks": init_rank * len(adapted),
            "target_ranks": target_rank * len(adapted),
            "total_steps": total_steps,
            "warmup_steps": warmup_steps,
            "final_steps": final_steps,
            "interval": interval,
        }
        budget(0, **self._schedule)  # raises for a schedule that can't be
        # T − t_f: the step at which ranks are chosen for good
        self.last_pruning = total_steps - final_steps
        self._betas = beta1, beta2
        self.orthogonality = orthogonality
        factors = [factor for layer in adapted.values() for factor in (layer.A, layer.E, layer.B)]
        self._sensitivity = [torch.zeros_like(factor) for factor in factors]
        self._uncertainty = [torch.zeros_like(factor) for factor in factors]
        # PEFT's names: they are written to adapter_config.json
        model.lorafam_rank_schedule = {  # type: ignore[assignment]
            "target_r": target_rank,
            "total_step": total_steps,
            "tinit": warmup_steps,
            "tfinal": final_steps,
            "deltaT": interval,
            "beta1": beta1,
            "beta2": beta2,
            "orth_reg_weight": orthogonality,
        }

    def penalty(self) -> Tensor:
        """The orthogonality penalty to add to the loss: its weight times the mean of ‖A Aᵀ − I‖_F and ‖Bᵀ B − I‖_F over
        all layers.
        """
        As, Bs = zip(*((layer.A, layer.B) for layer in self._layers.values()), strict=True)
        return self.orthogonality * F.orthogonality_penalty(As, Bs)

    @torch.no_grad()
    def step(self, global_step: int) -> None:
        """To be called after `optimizer.step()`, before `zero_grad()`, with steps counted from 1 (as PEFT's
        update_and_allocate).

        Raises RuntimeError when a factor has no gradient.
        """
        if not self._sensitivity:
            # compacted, also where training begins again
            return
        if global_step < self.last_pruning:
            for layer in self._layers.values():
                layer.active.kept_ranks = None
            self._update_importance()
            ranks, prune = budget(global_step, **self._schedule)
            if prune:
                self._prune(ranks)
        elif global_step == self.last_pruning:
            kept = self._prune(self._schedule["target_ranks"])
            for layer, mask in zip(self._layers.values(), kept, strict=True):
                layer.active.kept_ranks = mask.tolist()
        else:
            for layer in self._layers.values():
                kept_ranks = layer.active.kept_ranks
                if kept_ranks is not None and len(kept_ranks) == layer.E.shape[0]:
                    layer.E[~torch.tensor(kept_ranks, device=layer.E.device)] = 0.0

    def compact(
        self, optimizer: torch.optim.Optimizer | None = None, ddp: DistributedDataParallel | None = None
    ) -> int:
        """Removes the pruned ranks for good, from A, E and B (new parameters), from their gradients and from the
        optimiser's state and groups; returns how many. Outputs change by rounding at most, a step and its memory get
        smaller. To be called once ranks are chosen for good, after step T − t_f.

        `optimizer`: the one that trains the model, after its step. `ddp`: the wrapper around the model where several
        processes train; it is set up anew. From here on `penalty` is of the ranks that are left, where PEFT's goes on
        over all. Raises RuntimeError before ranks are chosen for good, or without `ddp` in several processes;
        NotImplementedError for an optimiser whose state isn't of the factors' shapes.
        """
        if any(layer.active.kept_ranks is None for layer in self._layers.values()):
            raise RuntimeError(f"compact: ranks are chosen for good at step {self.last_pruning}, expected a later call")
        dropped = compact_layers(self._layers.values(), optimizer, ddp)
        # nothing is pruned any more
        self._sensitivity, self._uncertainty = [], []
        return dropped

    def ranks(self) -> dict[str, int]:
        """Path → how many ranks of the layer are in use."""
        return {path: int((layer.E != 0).sum()) for path, layer in self._layers.items()}

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the importance so far (nothing once compacted), and the ranks kept for good once there
        are.
        """
        kept = {path: layer.active.kept_ranks for path, layer in self._layers.items()}
        return {"sensitivity": self._sensitivity, "uncertainty": self._uncertainty, "kept_ranks": kept}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave; that of a compacted model makes this one so, to be called before its
        parameters are loaded and its optimiser is made. Raises ValueError when it is of another model.
        """
        if state["kept_ranks"].keys() != self._layers.keys():
            raise ValueError("state: expected the allocator's state of this model, got that of other layers")
        factors = [factor for layer in self._layers.values() for factor in (layer.A, layer.E, layer.B)]
        shapes = [factor.shape for factor in factors]
        if any([one.shape for one in state[name]] not in ([], shapes) for name in ("sensitivity", "uncertainty")):
            raise ValueError("state: its importance isn't of the ranks that the layers have")
        for path, kept in state["kept_ranks"].items():
            self._layers[path].active.kept_ranks = kept
        if not state["sensitivity"]:
            if any(kept is None for kept in state["kept_ranks"].values()):
                raise ValueError("state: it has no importance, and ranks that aren't chosen for good")
            self._sensitivity, self._uncertainty = [], []
            compact_layers(self._layers.values())
            return
        self._sensitivity, self._uncertainty = (
            [saved.to(factor.device, copy=True) for saved, factor in zip(state[name], factors, strict=True)]
            for name in ("sensitivity", "uncertainty")
        )

    def _update_importance(self) -> None:
        factors, gradients = [], []
        for path, layer in self._layers.items():
            for name, factor in (("A", layer.A), ("E", layer.E), ("B", layer.B)):
                if factor.grad is None:
                    raise RuntimeError(f"step: {name} of {path!r} has no gradient; call it before zero_grad()")
                factors.append(factor)
                gradients.append(factor.grad)
        torch.ops.lorafam.adalora_importance(factors, gradients, self._sensitivity, self._uncertainty, *self._betas)

    def _prune(self, ranks: int) -> list[Tensor]:
        """Zeroes the E of all but the `ranks` most important triplets of all layers; returns who is kept."""
        dims = [0, 0, 1] * len(self._layers)
        scores = torch.ops.lorafam.adalora_scores(self._sensitivity, self._uncertainty, dims)
        # S_i = score(E_i) + mean score(A_i) + mean score(B_i), in PEFT's order of addition
        triplets = [scores[i + 1] + scores[i] + scores[i + 2] for i in range(0, len(scores), 3)]
        kept = keep_mask(torch.cat(triplets), ranks).split([len(score) for score in triplets])
        for layer, mask in zip(self._layers.values(), kept, strict=True):
            layer.E[~mask] = 0.0
        return list(kept)
