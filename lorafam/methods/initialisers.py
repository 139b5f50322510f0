"""A and B formed from the base weight W [N, K], so that W = W_res + s B A where W_res takes W's place.

    PiSSA    s B A = the r largest singular triplets of W, √(S/s) on each side (arXiv 2404.02948)
             "pissa": the whole SVD; "pissa_niter_n": a randomised one (arXiv 0909.4061) with n power iterations
    OLoRA    B, A = the first r columns and rows of Q, R in W = Q R; W_res = W − s B A (arXiv 2406.01775)
    LoftQ    codes and factors in turn: W_q ← quantise(W − s B A), s B A ← the r largest triplets of W − W_q
             (arXiv 2310.08659, algorithm 1)

Everything in fp32. A rank that W doesn't have starts as LoRA's own: B = 0 there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from ..config import power_iterations
from ..weights import NF4Weight

Tensor = torch.Tensor

# columns of the randomised SVD beyond the rank
OVERSAMPLED = 8
LOFTQ_TURNS = 5


class Start(NamedTuple):
    """A [r, K] and B [N, r], fp32."""

    A: Tensor
    B: Tensor


@torch.no_grad()
def from_weight(init: str, weight: Tensor, rank: int, scaling: float) -> Start:
    """The factors of "pissa", "pissa_niter_n" or "olora" for W [N, K] in fp32. Raises ValueError for a scaling of 0."""
    if scaling == 0:
        raise ValueError(f"alpha: init {init!r} divides by the scaling, expected a positive number, got 0")
    if init == "olora":
        return olora(weight, rank)
    return largest_triplets(weight, rank, scaling, power_iterations(init))


def largest_triplets(weight: Tensor, rank: int, scaling: float, iterations: int | None = None) -> Start:
    """s B A = Σ over the r largest singular values σ u vᵀ; by a randomised SVD where `iterations` is given."""
    most = min(weight.shape)
    if iterations is None:
        U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        U, S, V = torch.svd_lowrank(weight, q=min(rank + OVERSAMPLED, most), niter=iterations)
        Vh = V.T
    count = min(rank, most)
    root = (S[:count] / scaling).sqrt()
    return _filled(root.unsqueeze(1) * Vh[:count], U[:, :count] * root, rank)


def olora(weight: Tensor, rank: int) -> Start:
    """B = Q[:, :r] and A = R[:r] of W = Q R."""
    Q, R = torch.linalg.qr(weight)
    return _filled(R[:rank], Q[:, :rank], rank)


@torch.no_grad()
def loftq(
    weight: Tensor, rank: int, scaling: float, quantise: Callable[[Tensor], NF4Weight], turns: int = LOFTQ_TURNS
) -> tuple[NF4Weight, Start]:
    """W_q and the factors after `turns` turns; the base is W_q then."""
    if scaling == 0:
        raise ValueError("alpha: init 'loftq' divides by the scaling, expected a positive number, got 0")
    update = torch.zeros_like(weight)
    for _ in range(turns):
        quantised = quantise(weight - update)
        A, B = largest_triplets(weight - quantised.dequantize(torch.float32), rank, scaling)
        update = scaling * B @ A
    return quantised, Start(A, B)


def _filled(A: Tensor, B: Tensor, rank: int) -> Start:
    missing = rank - A.shape[0]
    if missing:
        more = A.new_empty(missing, A.shape[1])
        torch.nn.init.kaiming_uniform_(more, a=math.sqrt(5))
        A, B = torch.cat([A, more]), torch.cat([B, B.new_zeros(B.shape[0], missing)], 1)
    return Start(A.contiguous(), B.contiguous())
