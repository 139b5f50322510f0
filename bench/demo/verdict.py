"""The demo's table, its curves, and what must hold: each claim checked, one line each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafam.files import write_whole

from .pace import Pace, Paces
from .plan import BY_KEY, GENERATED, PAIRS, RUNS

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


OK, SLOWER, FAILED = "ok", "slower", "FAILED"


def claims(summaries: dict[str, Summary], paces: dict[str, Paces], checked: dict[str, str]) -> list[tuple[str, str]]:
    """(OK, SLOWER or FAILED, what was seen) for everything the demo looks at. A pace is never a failure."""
    rows = []
    for run in RUNS:
        if run.library != "lorafam":
            continue
        fall, error = summaries[run.key]["fall"], summaries[run.key]["fall_error"]
        seen = f"held-out loss fell by {fall:.3f} ± {error:.3f} (paired by chunk)"
        rows.append((OK if fall > 2 * error else FAILED, f"{run.title}: {seen}"))
    for ours, theirs in PAIRS:
        title, peer = summaries[ours]["title"], summaries[theirs]["title"]
        step, layers, generation, accelerated = paces[ours]
        rows.append(_pace(f"{title}: a step", "PEFT", step))
        rows.append(_pace(f"{title}: of it in the adapted layers", "PEFT", layers))
        rows.append(_pace(f"{title}: {GENERATED} tokens", "PEFT", generation))
        rows.append(_pace(f"{peer}: a step once accelerated in place", "before", accelerated))
        if BY_KEY[ours].quantize is None:
            # what a dense base needs is torch's own; the table shows it
            continue
        mine, other = summaries[ours]["memory"] / MIB, summaries[theirs]["memory"] / MIB
        seen = f"{title}: {mine:,.0f} MiB over the loaded model, PEFT {other:,.0f} MiB"
        rows.append((OK if mine <= other else FAILED, seen))
    for key, problem in checked.items():
        title = summaries[key]["title"]
        seen = problem or "PeftModel.from_pretrained gives the same logits, by the ratio rule"
        rows.append((FAILED if problem else OK, f"{title}: {seen}"))
    return rows


def _pace(what: str, other: str, pace: Pace) -> tuple[str, str]:
    seen = f"{pace.ours:.2f} s, {other} {pace.theirs:.2f} s: {pace.ratio:.2f}x ({pace.least:.2f} to {pace.most:.2f})"
    return OK if pace.ratio > 1 else SLOWER, f"{what} {seen}"


def plot(outputs: Sequence[tuple[str, Path]], path: Path) -> None:
    """The training loss of every run, smoothed, in one picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from lorafam.finetune.curves import smooth

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
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))
