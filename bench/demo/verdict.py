"""The demo's table, its curves, and what must hold: each claim checked, one line each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .pace import Paces
from .plan import GENERATED, GENERATION, LAYERS, PAIRS, RUNS

Summary = dict[str, Any]
MIB = 2**20


def table(summaries: dict[str, Summary]) -> str:
    """One line a run, as plain text."""
    header = ("", "trainable", "bits a base", "held-out loss", "held-out loss", "s a step", "peak memory")
    below = ("method", "parameters", "parameter", "before", "after", "", "over loaded")
    rows = [header, below]
    for run in RUNS:
        summary = summaries[run.key]
        bits = summary["bits_per_base_parameter"]
        rows.append(
            (
                run.title,
                f"{summary['trainable_parameters']:,}",
                "32" if bits is None else f"{bits:.3f}",
                f"{summary['before']:.3f} ± {summary['before_error']:.3f}",
                f"{summary['after']:.3f} ± {summary['after_error']:.3f}",
                f"{summary['seconds_per_step']:.2f}",
                f"{summary['memory'] / MIB:,.0f} MiB",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([*lines[:2], "-" * len(lines[0]), *lines[2:]])


def claims(summaries: dict[str, Summary], paces: dict[str, Paces], checked: dict[str, str]) -> list[tuple[bool, str]]:
    """(holds, what was seen) for everything the demo promises."""
    rows = []
    for run in RUNS:
        if run.library != "lorafam":
            continue
        fall, error = summaries[run.key]["fall"], summaries[run.key]["fall_error"]
        seen = f"held-out loss fell by {fall:.3f} ± {error:.3f} (paired by chunk)"
        rows.append((fall > 2 * error, f"{run.title}: {seen}"))
    for ours, theirs in PAIRS:
        title, (step, layers, generation, accelerated) = summaries[ours]["title"], paces[ours]
        seen = f"{step.ours:.2f} s a step, PEFT {step.theirs:.2f} s, {step.ratio:.2f}x in turn"
        rows.append((step.ratio > 1, f"{title}: {seen}"))
        seen = f"{layers.ours:.2f} s of it in the adapted layers, PEFT {layers.theirs:.2f} s, {layers.ratio:.2f}x"
        rows.append((layers.ratio > 1, f"{title}: {seen} (asked for: {LAYERS[ours]}x)"))
        seen = (
            f"{generation.ours:.2f} s for {GENERATED} tokens, PEFT {generation.theirs:.2f} s, {generation.ratio:.2f}x"
        )
        rows.append((generation.ratio > 1, f"{title}: {seen} (asked for: {GENERATION}x)"))
        peer = summaries[theirs]["title"]
        seen = f"{accelerated.ours:.2f} s a step once accelerated in place, before {accelerated.theirs:.2f} s"
        rows.append((accelerated.ratio > 1, f"{peer}: {seen}, {accelerated.ratio:.2f}x in turn"))
        mine, other = summaries[ours]["memory"] / MIB, summaries[theirs]["memory"] / MIB
        rows.append((mine <= other, f"{title}: {mine:,.0f} MiB over the loaded model, PEFT {other:,.0f} MiB"))
    for key, problem in checked.items():
        title = summaries[key]["title"]
        seen = problem or "PeftModel.from_pretrained gives the same logits, by the ratio rule"
        rows.append((not problem, f"{title}: {seen}"))
    return rows


def plot(outputs: Sequence[tuple[str, Path]], path: Path) -> None:
    """The training loss of every run, smoothed, in one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lorafam.train.curves import smooth

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for title, log in outputs:
        records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        trained = [record for record in records if "loss" in record]
        style = "--" if title.startswith("PEFT") else "-"
        axes.plot([r["step"] for r in trained], smooth([r["loss"] for r in trained]), style, label=title)
    axes.set(xlabel="step", ylabel="training loss (nats a token, smoothed)")
    axes.set_title("gemma-3-270m on the Python reference")
    axes.grid(alpha=0.3)
    axes.legend()
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    figure.savefig(temporary)
    os.replace(temporary, path)
