"""The dropout mask: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011) in int64 arithmetic.

    key = (seed low, seed high)          counter = (row low, column // 4, row high, 0)          32 bits each
    word(row, column) = output[column % 4]
    mask = 1/(1 - p) where word >= floor(p 2³²), else 0

A row is a token, counted over all leading dimensions. Nothing else enters, so that every backend, block shape and order
of execution gives the same mask, and the backward can form it anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW_32 = 0xFFFFFFFF

Counter = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Counter, key: tuple[int | Tensor, int | Tensor]) -> Counter:
    """Four 32-bit words of a counter and a key, each a 32-bit number in an int64 tensor (the key also as an int)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # An int64 product wraps modulo 2⁶⁴, which keeps its bits; the masks then undo the sign.
        product0, product1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> 32 & LOW_32) ^ c1 ^ k0,
            product1 & LOW_32,
            (product0 >> 32 & LOW_32) ^ c3 ^ k1,
            product0 & LOW_32,
        )
        k0, k1 = k0 + KEY_STEPS[0] & LOW_32, k1 + KEY_STEPS[1] & LOW_32
    return c0, c1, c2, c3


def philox_words(seed: int | Tensor, rows: Tensor, column_groups: Tensor) -> Tensor:
    """The words [..., 4] of four neighbouring columns, int64 in [0, 2³²).

    rows and column_groups (column // 4) are int64 and broadcast to [...]; seed is an int or an int64 tensor [].
    """
    rows, column_groups = torch.broadcast_tensors(rows, column_groups)
    counter = (rows & LOW_32, column_groups, rows >> 32 & LOW_32, torch.zeros_like(rows))
    return torch.stack(philox4x32(counter, (seed & LOW_32, seed >> 32 & LOW_32)), dim=-1)


def dropout_mask(
    seed: int | Tensor,
    rows: int,
    columns: int,
    p: float,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """The mask [rows, columns] of `dtype`: 0 with probability p, else 1/(1 - p).

    A seed tensor is int64, [], on `device`, and is never read back. Raises ValueError for p outside [0, 1).
    """
    if not 0 <= p < 1:
        raise ValueError(f"p: expected a probability in [0, 1), got {p}")
    if device is None and isinstance(seed, Tensor):
        device = seed.device
    row = torch.arange(rows, device=device).unsqueeze(1)
    column_group = torch.arange((columns + 3) // 4, device=device)
    words = philox_words(seed, row, column_group).flatten(1)[:, :columns]
    return (words >= int(p * 2**32)).to(dtype) * (1 / (1 - p))
