"""Bytes and bank conflicts of each kernel, counted while its compiled code runs on a CPU (ptxsim)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lorafam.inspect.every_kernel import calls, configuration
from lorafam.inspect.traffic import SECTOR_BYTES, Counted, count

from .variants import Variant, in_order, variant_of

TARGETS = ("sm_80", "sm_90")
N, K = 256, 512
# what programs that share a tile leave each other: no operand
_BETWEEN_PROGRAMS = ("parts_ptr", "arrivals_ptr")


def launches(target: str) -> dict[Variant, list[Counted]]:
    """Those of every op in bf16, or in the only dtype there is. Raises RuntimeError without ptxsim."""
    every = list(calls(N, K))
    bf16 = {call.op for call in every if call.dtype == torch.bfloat16}
    by_variant: dict[Variant, list[Counted]] = {}
    for call in every:
        if call.dtype == torch.bfloat16 or call.op not in bf16:
            for counted in count(target, call.run):
                config = configuration(counted.launch.kernel)
                by_variant.setdefault(variant_of(counted.launch.name, config), []).append(counted)
    return by_variant


def least_bytes(counted: Counted) -> int:
    """Each operand that is read once, and each that is written once."""
    names = [name for side in (counted.traffic.read, counted.traffic.written) for name in side]
    values = [counted.launch.arguments[name] for name in names if name not in _BETWEEN_PROGRAMS]
    return sum(getattr(value, "base", value).nbytes for value in values)  # the base of a tensor descriptor


def moved_bytes(counted: Counted, place: str) -> int:
    """Read and written at a place of `traffic.Moved`."""
    sides = (counted.traffic.read, counted.traffic.written)
    return SECTOR_BYTES * sum(getattr(moved, place) for side in sides for moved in side.values())


def table(by_target: dict[str, dict[Variant, list[Counted]]]) -> list[str]:
    """A line a variant, a column a target: the worst of its launches."""
    lines = [f"| kernel | {' | '.join(by_target)} |", "|" + "---|" * (len(by_target) + 1)]
    for variant in in_order({variant for found in by_target.values() for variant in found}):
        cells = [_cell(found.get(variant, [])) for found in by_target.values()]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return lines


def _cell(counted: Sequence[Counted]) -> str:
    if not counted:
        return ""
    memory, fetched = (
        max(moved_bytes(one, place) / least_bytes(one) for one in counted) for place in ("distinct", "fetched")
    )
    return f"{memory:.2f}, {fetched:.2f}, {max(one.traffic.conflicts for one in counted):.1%}"
