"""The chains of layers that are timed: lorafam's and PEFT's, over the same values."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from lorafam import functional as F

from ..case import Case, make_case
from ..peers.peft_layer import peft_layer

FEATURES, RANK = 64, 16
LAYERS, ROUNDS, WARM = 8, 60, 5
Tensor = torch.Tensor


class Chain(NamedTuple):
    """Links, each over the result of the one before, and the tensors that get gradients."""

    links: Sequence[Callable[[Tensor], Tensor]]
    x: Tensor
    grad_y: Tensor
    leaves: Sequence[Tensor]

    def __call__(self) -> None:
        """Forward and backward."""
        y = self.x
        for link in self.links:
            y = link(y)
        y.backward(self.grad_y)
        for leaf in self.leaves:
            leaf.grad = None


def layer_chains(name: str, tokens: int) -> dict[str, Chain]:
    """One layer a link."""
    cases = _cases(name, tokens)
    layers = {"lorafam": [case.layer for case in cases], "PEFT": [peft_layer(case)[0] for case in cases]}
    return {contender: _chain(own, own, cases[0]) for contender, own in layers.items()}


def group_chains(tokens: int) -> dict[str, Chain]:
    """Three QLoRA layers over one x a link, such as q, k and v: lorafam's as a group."""
    triples = [_cases("qlora", tokens, 3) for _ in range(LAYERS)]
    ours: Any = [[case.layer for case in cases] for cases in triples]
    theirs = [[peft_layer(case)[0] for case in cases] for cases in triples]
    return {
        "lorafam": _chain([_grouped(layers) for layers in ours], [*chain.from_iterable(ours)], triples[0][0]),
        "PEFT": _chain([_one_by_one(layers) for layers in theirs], [*chain.from_iterable(theirs)], triples[0][0]),
    }


def least(chains: dict[str, Chain]) -> dict[str, float]:
    """Microseconds a link, by name: the least of many chains in turn, of which what else runs here slows some."""
    taken: dict[str, list[float]] = {name: [] for name in chains}
    for _ in range(WARM + ROUNDS):
        for name, own in chains.items():
            start = time.perf_counter()
            own()
            taken[name].append((time.perf_counter() - start) * 1e6 / len(own.links))
    return {name: min(times[WARM:]) for name, times in taken.items()}


def _cases(name: str, tokens: int, count: int = LAYERS) -> list[Case]:
    return [make_case(name, FEATURES, tokens, torch.bfloat16, RANK) for _ in range(count)]


def _chain(links: Sequence[Any], layers: Sequence[Any], case: Case) -> Chain:
    leaves = [leaf for layer in layers for leaf in layer.parameters()]
    return Chain(links, case.x, case.grad_y, [case.x, *leaves])


def _grouped(layers: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    weights = [layer.base_layer.weight for layer in layers]

    def link(x: Tensor) -> Tensor:
        As, Bs = [layer.A for layer in layers], [layer.B for layer in layers]
        return _joined(F.grouped_lora_linear(x, weights, As, Bs, [1.0] * len(layers)))

    return link


def _one_by_one(layers: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    return lambda x: _joined([layer(x) for layer in layers])


def _joined(ys: Any) -> Tensor:
    """What uses all three, in one operation."""
    q, k, v = ys
    return torch.addcmul(q, k, v)
