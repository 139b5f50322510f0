"""The loss curves of a run as a PNG: training loss, the same smoothed, held-out loss with its standard error.

Smoothed is the exponential moving average with weight 0.1 on the newest step, divided by 1 − 0.9ᵗ so that its start
isn't biased.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_whole
from .run_log import Record

_WEIGHT = 0.1


def smooth(losses: Sequence[float]) -> list[float]:
    """The bias-corrected exponential moving average of `losses`."""
    average, result = 0.0, []
    for count, loss in enumerate(losses, 1):
        average += _WEIGHT * (loss - average)
        result.append(average / (1 - (1 - _WEIGHT) ** count))
    return result


def plot_curves(records: Sequence[Record], path: Path, title: str) -> None:
    """Draws the records of a run's log; the file appears whole."""
    figure = Figure(figsize=(7.5, 4.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    trained = [record for record in records if "loss" in record]
    steps, losses = [record["step"] for record in trained], [record["loss"] for record in trained]
    axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training")
    axes.plot(steps, smooth(losses), color="tab:blue", linewidth=2, label="training, smoothed")
    evaluated = [record for record in records if "held_out_loss" in record]
    axes.errorbar(
        [record["step"] for record in evaluated],
        [record["held_out_loss"] for record in evaluated],
        yerr=[record["held_out_standard_error"] for record in evaluated],
        color="tab:orange",
        marker="o",
        markersize=5,
        capsize=3,
        label="held out ± standard error",
    )
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))
