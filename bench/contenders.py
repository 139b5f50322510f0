"""Everybody who is timed on one layer, by name.

lorafam, eager PyTorch in PEFT's order of operations, PEFT + bitsandbytes and the dense product run in one process, next
to each other; each of the other projects (`PEERS`) in one of its own.

All have the same weight, adapter values and input; the adapter is fp32, for `PEERS`, whose kernels multiply in one
dtype, x's. `forward` gives Y; `train` gives Y and the gradients of x and of every adapter tensor.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .case import Case
from .peers import axolotl, dense, eager, lorafusion, peft_layer, unsloth

Tensor = torch.Tensor
PEERS = {peer.name: peer for peer in (unsloth.PEER, axolotl.PEER, lorafusion.PEER)}
TITLES = {
    "lorafam": "lorafam",
    "eager": "eager",
    "peft": "PEFT",
    "dense": "dense",
    **{name: peer.title for name, peer in PEERS.items()},
}
MAKERS = {
    "eager": eager.make,
    "peft": peft_layer.make,
    "dense": dense.make,
    **{name: peer.make for name, peer in PEERS.items()},
}


def case_for(contender: str, case: Case) -> Case:
    """The case as the contender gets it."""
    return case.narrowed() if contender in PEERS else case


def forward_of(contender: str, case: Case) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The contender's forward on the case's input, and the adapter tensors it differentiates, in the order of
    `case.leaves()`.
    """
    if contender == "lorafam":
        return lambda: case.layer(case.x), list(case.leaves().values())
    return MAKERS[contender](case)


def train_of(contender: str, case: Case) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward: (Y, dx, gradient of each leaf)."""
    forward, leaves = forward_of(contender, case)

    def train() -> tuple[Tensor, ...]:
        y = forward()
        return (y.detach(), *torch.autograd.grad(y, [case.x, *leaves], case.grad_y))

    return train
