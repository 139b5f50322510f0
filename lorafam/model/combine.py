"""A new adapter from several that a model has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..config import check_choice, check_rank
from ..methods.adapter import AdapterSettings
from .adapt import expected_layers
from .adapters import check_name, check_new_name, modules_beside

COMBINATIONS = ("linear", "cat", "svd")


@torch.no_grad()
def combine_adapters(
    model: nn.Module,
    adapters: Sequence[str],
    weights: Sequence[float],
    name: str,
    how: str = "cat",
    rank: int | None = None,
) -> None:
    """A new adapter `name` from several of LoRA, as PEFT's add_weighted_adapter makes it; with Δ_i = s_i B_i A_i:

    "cat"       Σ w_i Δ_i exactly, of the sum of their ranks
    "svd"       the `rank` largest singular triplets of Σ w_i Δ_i (None: the largest of their ranks)
    "linear"    A = Σ ±√|w_i s_i| A_i, B = Σ √|w_i s_i| B_i, of their common rank: not the sum of the Δ_i

    Raises KeyError for an unknown adapter, ValueError for unequal ranks ("linear"), adapters that aren't LoRA's or have
    biases, or a name that is taken, before anything is changed.
    """
    check_choice("how", how, COMBINATIONS)
    if rank is not None:
        check_rank("rank", rank)
    for argument, several in (("adapters", adapters), ("weights", weights)):
        if not isinstance(several, Sequence) or isinstance(several, str):
            raise ValueError(f"{argument}: expected a list, got {several!r}")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ValueError(f"weights: expected finite numbers, got {weight!r}")
    if len(adapters) != len(weights) or not adapters:
        raise ValueError(f"adapters, weights: expected as many of each, got {len(adapters)} and {len(weights)}")
    layers = expected_layers(model)
    check_new_name(model, name)
    for one in adapters:
        check_name(layers, one, "adapters")
    # each layer's own of them; a module that none of them adapts stays its base
    parts: dict[str, dict[str, Any]] = {}
    for path, layer in layers.items():
        own: dict[str, Any] = {one: layer.adapters[one] for one in adapters if one in layer.adapters}
        if not own:
            continue
        other = next((one.kind for one in own.values() if not one.kind.adds_up), None)
        if other is not None:
            raise ValueError(f"model: expected LoRA layers, {path!r} is a {other.__name__}")
        biased = next((one for one, adapter in own.items() if getattr(adapter, "bias", None) is not None), None)
        if biased is not None:
            raise ValueError(f"adapters: {biased!r} of {path!r} has a bias of its own")
        ranks: set[int] = {adapter.rank for adapter in own.values()}
        if how == "linear" and len(ranks) > 1:
            raise ValueError(
                f"how: 'linear' needs one rank, the adapters of {path!r} have {sorted(ranks)}; 'cat' does not"
            )
        parts[path] = own
    for path, module in modules_beside(model).items():
        if any(module.has(one) for one in adapters):
            raise ValueError(f"adapters: one of them has {path!r} for itself, which can't be combined")
    for path, own in parts.items():
        weighted = [(own[one], weight) for one, weight in zip(adapters, weights, strict=True) if one in own]
        pairs = [(adapter, weight * adapter.scaling) for adapter, weight in weighted]
        A, B = _combined(pairs, how, rank)
        # α = r: a scaling of 1
        first = pairs[0][0]
        layers[path].put_adapter(name, AdapterSettings(A.shape[0], A.shape[0], first.dropout), {}, first.kind)
        made: Any = layers[path].adapters[name]
        made.A.copy_(A)
        made.B.copy_(B)


def _combined(pairs: list[tuple[Any, float]], how: str, rank: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of a scaling of 1, from adapters and what each is multiplied by."""
    parts = [part for part, _ in pairs]
    if how == "linear":
        A = sum(math.copysign(math.sqrt(abs(factor)), factor) * part.A for part, factor in pairs)
        B = sum(math.sqrt(abs(factor)) * part.B for part, factor in pairs)
        return A, B
    A = torch.cat([factor * part.A for part, factor in pairs])
    B = torch.cat([part.B for part in parts], 1)
    if how == "cat":
        return A, B
    # of B A through two small factors: W-sized products aren't needed
    (Q_b, R_b), (Q_a, R_a) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    U, S, Vh = torch.linalg.svd(R_b @ R_a.T)
    rank = min(rank or max(part.rank for part in parts), len(S))
    return (Q_a @ Vh[:rank].T).T.contiguous(), (Q_b @ U[:, :rank]) * S[:rank]
