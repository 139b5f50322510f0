"""A batch whose rows name their adapter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

Tensor = torch.Tensor
Names = Sequence[str | None]


def rows_of_batch(x: Tensor, names: Names, smallest: int) -> list[str | None]:
    """The name of each row of x, which has at least `smallest` dimensions. Where each row of a sequence was repeated
    (beams, several sequences a prompt), so is its name.

    Raises ValueError for another number of rows. Without a dimension of tokens (a mixture's, flattened ones) a multiple
    may be anything, and is refused.
    """
    count = x.shape[0] if x.ndim >= smallest else 0
    repeats = count // len(names) if x.ndim > smallest or count == len(names) else 0
    if repeats == 0 or count != repeats * len(names):
        raise ValueError(f"x: expected a batch of {len(names)} rows, one for each name, got {list(x.shape)}")
    return [name for name in names for _ in range(repeats)]


def add_by_row(y: Tensor, x: Tensor, rows: Names, updates: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """y with, for each name, its update of those rows of x."""
    for name, update in updates.items():
        at = torch.tensor([index for index, one in enumerate(rows) if one == name], device=x.device)
        y = y.index_add(0, at, update(x[at]).to(y.dtype))
    return y


def put_by_row(y: Tensor, rows: Names, outputs: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    """y with, for each name, its own output at the indices of those rows."""
    for name, output in outputs.items():
        at = torch.tensor([index for index, one in enumerate(rows) if one == name], device=y.device)
        y = y.index_copy(0, at, output(at).to(y.dtype))
    return y
