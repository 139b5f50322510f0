"""A layer whose adapter can be folded into its base, and taken out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from .. import config
from ..compat.accelerate import loaded
from .base_weight import dense_base_weight
from .folded import Folded, check_state
from .folding import fold
from .merge_report import THRESHOLD, MergeReport, check_threshold
from .stored_weight import decoded

Tensor = torch.Tensor


class Mergeable(nn.Module, ABC):
    """With a `base_layer` and `adapters`; what the adapter makes of the weight, and the modes, are the subclass's."""

    base_layer: nn.Module
    adapters: nn.ModuleDict
    _folded: Folded | None = None
    # the load whose state was looked at (`check_state`)
    checked_for: list[str] | None = None

    @abstractmethod
    def merged_weight(self, weight: Tensor, rows: slice = slice(None)) -> Tensor:
        """What stands for the `rows` of W [N, K] with the adapter in them, in their dtype: fp32 or fp64."""

    @abstractmethod
    def _settle(self) -> None:
        """Follows a change of mode."""

    @property
    def merged(self) -> bool:
        return self._folded is not None

    @torch.no_grad()
    def delta_weight(self) -> Tensor:
        """What merging adds to W: c ∘ (W + B̂ A) − W, fp32 [N, K]."""
        weight = self._unmerged_weight()
        with loaded(self.adapters.values()):
            return self.merged_weight(weight) - weight

    @torch.no_grad()
    def merge(
        self, safe: bool = True, *, into: str = "same", probe: Tensor | None = None, threshold: float = THRESHOLD
    ) -> MergeReport:
        """Folds the active adapter into the base, which then runs alone. What was there is kept, so that `unmerge` is
        exact.

        `into` is how the merged weight is stored: "same" as the base, "nf4" (with a 4-bit base's block size and double
        quantisation), "bf16", "fp16" or "fp32": then a 4-bit base gives way to an nn.Linear, whose inputs must be of
        that dtype. The exact weight is formed in fp64, then rounded. The report says what that cost, on `probe`
        inputs [.., K] or standard-normal ones, with an advice by `threshold` (`MergeReport.unmerged_is_better`).

        `safe` refuses a result that isn't finite (ValueError). Raises RuntimeError when merged already or without an
        active adapter, TypeError for a base whose weight can't be replaced, ValueError for a wrong `into`, `probe` or
        `threshold`.
        """
        check_threshold(threshold)
        config.check_flag("safe", safe)
        with loaded(self.adapters.values()):
            self._folded, report = fold(self, safe, into, probe, threshold)
        self._settle()
        return report

    @torch.no_grad()
    def unmerge(self) -> None:
        """Puts back the very base that `merge` kept. Raises RuntimeError when the layer isn't merged."""
        if self._folded is None:
            raise RuntimeError("unmerge: the layer isn't merged")
        self.taken_apart()

    @torch.no_grad()
    def taken_apart(self) -> Folded:
        """`unmerge`; what it gives, `put_together` puts in again."""
        folded = self._folded
        assert folded is not None, "merged"
        folded.put(self, inside=False)
        self._folded = None
        self._settle()
        return folded

    def put_together(self, folded: Folded) -> None:
        """Merges as it was before `taken_apart`."""
        self._folded = folded
        self._settle()

    def unloaded(self) -> nn.Module:
        """The base for a model without this layer: with the adapter folded in where it is merged, in any mode."""
        if self._folded is not None:
            self._folded.put(self, inside=True)
        return self.base_layer

    def _unmerged_weight(self) -> Tensor:
        if self._folded is None:
            return dense_base_weight(self.base_layer)
        return decoded(self._folded.weight)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # the model has asked already where it is loaded as a whole
        check_state(self, state_dict, prefix, args[-1])
        self.checked_for = None
        super()._load_from_state_dict(state_dict, prefix, *args)
