"""What the compiler made of each kernel, from the rows of `kernels.json`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .variants import Variant, in_order, variant_of

TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
# operands' dtype, and that of kernels whose operands are always fp32
_DTYPES = ("bfloat16", "float32")

Row = Mapping[str, Any]


def by_variant(rows: Sequence[Row]) -> dict[Variant, dict[str, list[Row]]]:
    """The rows of each variant by target, in bf16 where a kernel comes in several dtypes."""
    grouped: dict[Variant, dict[str, dict[str, list[Row]]]] = {}
    for row in rows:
        if row["target"] in TARGETS and row["dtype"] in _DTYPES:
            variant = variant_of(row["kernel"], row["config"])
            grouped.setdefault(variant, {}).setdefault(row["dtype"], {}).setdefault(row["target"], []).append(row)
    kernels = {variant.kernel for variant, dtypes in grouped.items() if _DTYPES[0] in dtypes}
    chosen = {
        variant: dtypes[_DTYPES[0] if variant.kernel in kernels else _DTYPES[1]]
        for variant, dtypes in grouped.items()
        if _DTYPES[0] in dtypes or variant.kernel not in kernels
    }
    return {variant: chosen[variant] for variant in in_order(chosen)}


def resources(rows: Sequence[Row]) -> list[str]:
    """Registers a thread and shared memory of a program; the most of a variant's specialisations."""
    lines = _head(f"kernel ({_DTYPES[0]})")
    for variant, targets in by_variant(rows).items():
        cells = [
            f"{_most(targets[target], 'registers')}, {_most(targets[target], 'shared_bytes') / 1024:.1f}"
            if target in targets
            else ""
            for target in TARGETS
        ]
        lines.append(_line(str(variant), cells))
    return lines


def instructions(rows: Sequence[Row]) -> list[str]:
    """Lane-instructions a weight of the kernels that decode by look-ups; the most of a variant's specialisations."""
    lines = _head(f"kernel ({_DTYPES[0]})")
    for variant, targets in by_variant(rows).items():
        found = [worst(targets.get(target, [])) for target in TARGETS]
        if any(found):
            lines.append(_line(str(variant), map(_cell, found)))
    return lines


def worst(rows: Sequence[Row]) -> Mapping[str, Any] | None:
    """`per_weight` of the row with the most instructions a weight; None where no row decodes by look-ups."""
    return max((row["per_weight"] for row in rows if row["per_weight"]), key=lambda one: one["total"], default=None)


def half_rate(per_weight: Mapping[str, Any]) -> float:
    """Instructions a weight of the fuller of the two pipes of half rate."""
    return max(per_weight["alu"], per_weight["multiply"])


def _cell(per_weight: Mapping[str, Any] | None) -> str:
    if per_weight is None:
        return ""
    return f"{per_weight['total']:.2f}, {per_weight['beside_tensor_cores']:.2f}, {half_rate(per_weight):.2f}"


def _most(rows: Sequence[Row], name: str) -> int:
    return max(row[name] for row in rows)


def _head(first: str) -> list[str]:
    return [_line(first, TARGETS), "|" + "---|" * (len(TARGETS) + 1)]


def _line(first: str, cells: Iterable[str]) -> str:
    return f"| {first} | {' | '.join(cells)} |"
