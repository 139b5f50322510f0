"""What merging a whole model cost: a report a layer, and a table of them that fits a screen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from ..methods.merge_report import MergeReport, percent

_HEAD = ("layers", "", "update kept", "error / weight", "error / output", "error / update's output", "")


class ModelMergeReport(dict[str, MergeReport]):
    """Path → `MergeReport`, in the model's order; `kept` are the layers that were left as adapters, their figures those
    that merging would have had. As a string: a table, equal layers of a model on one line with their worst figures, the
    worst lines first, then a list of the layers that are better unmerged.
    """

    def __init__(self, reports: Mapping[str, MergeReport], kept: Iterable[str] = ()) -> None:
        super().__init__(reports)
        self.kept = tuple(kept)

    @property
    def advised(self) -> list[str]:
        """Layers that are better left unmerged, the worst first."""
        worst = sorted(self.items(), key=lambda item: -_error(item[1]))
        return [path for path, report in worst if report.unmerged_is_better]

    def table(self) -> list[tuple[str, ...]]:
        """The lines of the table, the head first."""
        groups: dict[tuple[str, str, bool, bool], list[MergeReport]] = {}
        for path, report in self.items():
            pattern = re.sub(r"(?<![^.])\d+(?![^.])", "*", path)
            key = pattern, report.stored, report.unmerged_is_better, path in self.kept
            groups.setdefault(key, []).append(report)
        lines: list[tuple[str, ...]] = [_HEAD]
        worst = sorted(groups.items(), key=lambda item: (not item[0][2], -max(map(_error, item[1]))))
        for (pattern, _, better, kept), reports in worst:
            figures = (
                min(report.update_kept for report in reports),
                max(report.relative_weight_error for report in reports),
                max(report.output_error for report in reports),
                max(report.update_output_error for report in reports),
            )
            advice = "not merged" if kept else "not advised" if better else ""
            count = f"x{len(reports)}" if len(reports) > 1 else ""
            lines.append((pattern, count, *map(percent, figures), advice))
        return lines

    def summary(self) -> str:
        """How many layers were merged, and which are better unmerged."""
        formats = ", ".join(dict.fromkeys(report.stored for report in self.values()))
        merged = f"{len(self) - len(self.kept)} of {_layers(len(self))} merged as {formats}"
        advised = [path for path in self.advised if path not in self.kept]
        if not advised:
            return merged
        limit = percent(min(self[path].threshold for path in advised))
        some = ", ".join(advised[:4]) + (f" and {len(advised) - 4} more" if len(advised) > 4 else "")
        rule = f"over {limit} of the update lost, or rounding greater than it"
        return f"{merged}; {len(advised)} better unmerged ({rule}): {some}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        layers = {path: report.plain() for path, report in self.items()}
        return {"layers": layers, "better_unmerged": self.advised, "left_unmerged": list(self.kept)}

    def __str__(self) -> str:
        lines = self.table()
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD) - 1)]
        sides = [str.ljust] * 2 + [str.rjust] * 4
        table = [
            "  ".join([*(side(text, width) for side, text, width in zip(sides, line, widths, strict=False)), line[-1]])
            for line in lines
        ]
        return "\n".join([*(line.rstrip() for line in table), self.summary()])

    def __repr__(self) -> str:
        return f"ModelMergeReport({len(self)} layers, {len(self.advised)} better unmerged, {len(self.kept)} kept)"


def _error(report: MergeReport) -> float:
    error = report.update_output_error
    return float("inf") if error != error else error


def _layers(count: int) -> str:
    return f"{count} layer" if count == 1 else f"{count} layers"
