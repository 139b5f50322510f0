"""What a merge cost: how far the weight that was stored is from the exact one, beside what the adapter changed.

Of W [N, K] as the base had it (decoded), E = c ∘ (W + B̂ A) in fp64, S as it was stored, and probe inputs x [T, K]:

    relative_weight_error  ‖S − E‖ / ‖E‖               update_error         ‖S − E‖ / ‖E − W‖
    relative_update        ‖E − W‖ / ‖E‖               update_kept          ⟨S − W, E − W⟩ / ‖E − W‖²
    output_error           ‖x(S − E)ᵀ‖ / ‖xEᵀ‖         update_output_error  ‖x(S − E)ᵀ‖ / ‖x(E − W)ᵀ‖

in Frobenius' norm. Rounding hardly changes E, yet E − W is small beside W and may be lost in it: that is what the
ratios to the update show. On standard-normal probes both output errors estimate those of the weight; a layer's real
inputs lie in few directions, and only they tell what the model will notice. Biases are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

# the share of the update that may be lost before merging is advised against
THRESHOLD = 0.1
PROBES = 64
_SEED = 0
# weights looked at in one go: 32 MiB in fp64
_BLOCK = 1 << 22


class MergeReport(NamedTuple):
    """`base`: the class of the base layer; `stored`: how the merged weight is stored; the figures above."""

    base: str
    stored: str
    relative_weight_error: float
    relative_update: float
    update_error: float
    update_kept: float
    output_error: float
    update_output_error: float
    threshold: float = THRESHOLD

    @property
    def lost(self) -> float:
        """The share of the update that rounding takes back."""
        return 1 - self.update_kept

    @property
    def unmerged_is_better(self) -> bool:
        """Whether more than `threshold` of the update is lost, or storing changes the output by more than the adapter
        does. Rounding that is merely random beside the update does little harm below that, and isn't advised against.

        Accuracy alone is weighed: an unmerged adapter costs time in every forward.
        """
        return not (self.lost <= self.threshold and self.update_output_error <= 1)

    @property
    def reason(self) -> str:
        """Why `unmerged_is_better` is what it is."""
        error, lost = percent(self.update_output_error), percent(max(0.0, self.lost))
        if math.isnan(self.update_output_error):
            return "the merged weight isn't finite"
        if math.isinf(self.update_output_error):
            return f"the adapter changes nothing, storing as {self.stored} does"
        if self.lost > self.threshold:
            return f"rounding to {self.stored} loses {lost} of the update, more than {percent(self.threshold)}"
        if self.update_output_error > 1:
            return f"rounding to {self.stored} changes the output more than the update does: {error} of it"
        return f"rounding to {self.stored} loses {lost} of the update and is {error} of its output"

    def __str__(self) -> str:
        advice = "better unmerged" if self.unmerged_is_better else "fine merged"
        return (
            f"{self.base} as {self.stored}: weight error {percent(self.relative_weight_error)}, output error "
            f"{percent(self.output_error)}; of the update {percent(self.update_kept)} kept, error "
            f"{percent(self.update_error)} in the weight, {percent(self.update_output_error)} in the output; {advice}"
        )

    def plain(self) -> dict[str, Any]:
        """For JSON: figures that aren't finite are None."""
        values = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in self._asdict().items()
        }
        return {**values, "unmerged_is_better": self.unmerged_is_better, "reason": self.reason}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> MergeReport:
        """Back from `plain`; what was None is infinite."""
        return cls._make(math.inf if values[name] is None else values[name] for name in cls._fields)


def measure(
    base: str,
    stored_as: str,
    *,
    before: Tensor,
    exact: Callable[[Tensor, slice], Tensor],
    stored: Tensor,
    probe: Tensor,
    threshold: float,
) -> MergeReport:
    """The figures of W = `before` [N, K] and S = `stored` [N, K], `exact(W's rows in fp64, which rows)` being E's, and
    x = `probe` [T, K]. Rows are taken a block at a time; differences are in fp64, products with the probes in fp32.
    """
    sums = torch.zeros(7, dtype=torch.float64, device=before.device)
    for rows in row_blocks(before):
        w, s = before[rows].double(), stored[rows].double()
        e = exact(w, rows)
        error, update = s - e, e - w
        outputs = [probe @ part.to(probe.dtype).T for part in (error, e, update)]
        sums += torch.stack(
            [
                *(part.double().square().sum() for part in (error, e, update)),
                ((s - w) * update).sum(),
                *(part.double().square().sum() for part in outputs),
            ]
        )
    error, e, update, along, error_output, e_output, update_output = sums.tolist()
    root = math.sqrt
    return MergeReport(
        base,
        stored_as,
        _ratio(root(error), root(e)),
        _ratio(root(update), root(e)),
        _ratio(root(error), root(update)),
        along / update if update else 1.0,
        _ratio(root(error_output), root(e_output)),
        _ratio(root(error_output), root(update_output)),
        threshold,
    )


def row_blocks(weight: Tensor) -> Iterator[slice]:
    """Rows of a weight [N, K], in blocks that stay small in fp64."""
    rows, columns = weight.shape
    step = max(1, _BLOCK // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def probe_rows(probe: Tensor | None, in_features: int, device: torch.device) -> Tensor:
    """`probe` [.., K] as [T, K] in fp32, or standard-normal ones from a fixed seed.

    Raises ValueError for another width, none at all, or values that aren't finite; TypeError for anything but floats.
    """
    if probe is None:
        generator = torch.Generator().manual_seed(_SEED)
        return torch.randn(PROBES, in_features, generator=generator).to(device)
    if not isinstance(probe, Tensor) or not probe.is_floating_point():
        raise TypeError(f"probe: expected a tensor of floats, got {getattr(probe, 'dtype', type(probe).__name__)}")
    if probe.ndim == 0 or probe.shape[-1] != in_features or probe.numel() == 0:
        raise ValueError(f"probe: expected shape [.., {in_features}], got {list(probe.shape)}")
    if not probe.isfinite().all():
        raise ValueError("probe: expected finite values, got NaN or inf")
    return probe.detach().reshape(-1, in_features).to(device, torch.float32)


def check_threshold(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise ValueError(f"threshold: expected a share of the update, 0.1 say, got {value!r}")


def percent(share: float) -> str:
    """0.0123 → "1.2 %", 6.4 → "640 %"."""
    if not math.isfinite(share):
        return "NaN" if math.isnan(share) else "∞"
    value = 100 * share
    return f"{value:.0f} %" if abs(value) >= 9.95 else f"{value:.2g} %"


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.inf if part else part
