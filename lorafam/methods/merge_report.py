"""What a merge cost: how far the weight that was stored is from the exact one."""

from __future__ import annotations

from typing import NamedTuple

import torch

Tensor = torch.Tensor


class MergeReport(NamedTuple):
    """`relative_weight_error` = ‖stored − exact‖_F / ‖exact‖_F; rounding to the base's format is all there is of it."""

    base: str
    relative_weight_error: float

    @classmethod
    def measure(cls, base: str, *, stored: Tensor, exact: Tensor) -> MergeReport:
        scale = torch.linalg.vector_norm(exact).item()
        error = torch.linalg.vector_norm(stored - exact).item()
        return cls(base, error / scale if scale else error)
