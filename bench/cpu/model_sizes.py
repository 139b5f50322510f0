"""Layers of the sizes of models that are trained on a CPU, in fp32 at rank 8, beside PEFT (+ bitsandbytes); and a
frozen output head's logits and its loss, beside torch's.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import nn

from lorafam.methods.frozen_linear import freeze_layer

from ..case import make_case
from ..gate import check
from .interleaved import medians
from .layers import layer_calls

SIZES = ((256, 640), (1024, 640), (2048, 640), (640, 2048), (3072, 1024), (4096, 4096))
VOCABULARY = (262144, 640)
TOKENS = (1, 16, 128, 512)
RANK = 8
DIRECTIONS = ("forward", "train")


class Timed(NamedTuple):
    """Median seconds of both, in turn; "train" is forward and backward (of a head: the loss and dx)."""

    what: str
    size: tuple[int, int]
    tokens: int
    direction: str
    ours: float
    theirs: float


def layers(name: str, seconds: float) -> Iterator[Timed]:
    """A case of `bench.case` at every size and number of tokens, after the correctness rule has held."""
    for size in SIZES:
        for tokens in TOKENS:
            case = make_case(name, size, tokens, rank=RANK)
            check(case)
            for direction in DIRECTIONS:
                found = medians(layer_calls(case, direction), seconds)
                yield Timed(name, size, tokens, direction, found["lorafam"], found["peft"])


def head(seconds: float) -> Iterator[Timed]:
    """A frozen output head, as `adapt` and `accelerate` leave it, and as it was: its logits; its loss and dx."""
    rows, columns = VOCABULARY
    generator = torch.Generator().manual_seed(0)
    theirs = nn.Linear(columns, rows, bias=False, device="meta")
    weight = torch.randn(rows, columns, generator=generator) * columns**-0.5
    theirs.weight = nn.Parameter(weight, requires_grad=False)
    ours = nn.Linear(columns, rows, bias=False, device="meta")
    ours.weight = theirs.weight
    freeze_layer(ours)
    for tokens in TOKENS:
        x = torch.randn(tokens, columns, generator=generator).requires_grad_()
        target = torch.randint(rows, (tokens,), generator=generator)
        logits = {"lorafam": functools.partial(_logits, ours, x), "torch": functools.partial(_logits, theirs, x)}
        losses = {
            "lorafam": functools.partial(_loss, ours, x, target),
            "torch": functools.partial(_loss, theirs, x, target),
        }
        for direction, calls in zip(DIRECTIONS, (logits, losses), strict=True):
            found = medians(calls, seconds)
            yield Timed("head", VOCABULARY, tokens, direction, found["lorafam"], found["torch"])


def _logits(head: nn.Linear, x: torch.Tensor) -> None:
    # looked at, or they would wait
    head(x).detach().data_ptr()


def _loss(head: nn.Linear, x: torch.Tensor, target: torch.Tensor) -> None:
    torch.autograd.grad(torch.nn.functional.cross_entropy(head(x), target), x)
