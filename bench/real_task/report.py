"""The page and the picture of a measurement."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lorafam.files import write_whole

from .plan import BY_KEY, METHODS, RANK, SEEDS, SEQUENCE_LENGTH

MIB = 2**20


def report(results: dict[str, Any], steps: int, processor: str) -> str:
    """The table, and what is seen in it."""
    lines = [
        f"gemma-3-270m on Python's language reference, {processor}; {steps} steps of {SEQUENCE_LENGTH} tokens, rank "
        f"{RANK} (AdaLoRA on average, in the end), {len(SEEDS)} seeds; ± is the standard deviation over seeds, times "
        "are medians.",
        "",
        "| method | rate | trained at the start | held-out loss before | after | fell by | s a step | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        runs = results[method.key]["runs"]
        after = [one["after"] for one in runs]
        falls = [one["before"] - one["after"] for one in runs]
        seconds = statistics.median(one["seconds_per_step"] for one in runs)
        memory = statistics.median(one["memory"] for one in runs) / MIB
        lines.append(
            f"| {method.title} | {results[method.key]['rate']:g} | {runs[0]['trainable_parameters']:,} "
            f"| {runs[0]['before']:.3f} | {_spread(after)} | {_spread(falls)} | {seconds:.2f} | {memory:,.0f} MiB |"
        )
    lines += ["", *(f"- {claim}" for claim in _claims(results)), "", "Rates tried, and the training loss they led to:"]
    for method in METHODS:
        tried = ", ".join(
            f"{float(rate):g}: {one['training_loss']:.3f}" for rate, one in results[method.key]["tried"].items()
        )
        lines.append(f"- {method.title}: {tried}")
    return "\n".join(lines) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.3f}"


def _claims(results: dict[str, Any]) -> list[str]:
    """Papers' claims that this task can speak to, and what it says: differences are seed by seed."""
    said = []
    for paper, better, than in (
        ("DoRA is better than LoRA (arXiv 2402.09353)", "qdora", "qlora"),
        ("AdaLoRA is better than LoRA at the same budget (arXiv 2303.10512)", "adalora", "qlora"),
        ("QLoRA matches LoRA on the dense base (arXiv 2305.14314)", "qlora", "lora"),
    ):
        differences = [
            other["after"] - one["after"]
            for one, other in zip(results[better]["runs"], results[than]["runs"], strict=True)
        ]
        mean, error = statistics.mean(differences), statistics.stdev(differences) / len(differences) ** 0.5
        shown = "lower" if mean > 0 else "higher"
        clear = "" if abs(mean) > 2 * error else ", within the noise of three seeds"
        said.append(
            f"{paper}: the loss of {BY_KEY[better].title} is {abs(mean):.3f} ± {error:.3f} {shown} than that of "
            f"{BY_KEY[than].title}{clear}."
        )
    return said


def draw_ranks(runs: Sequence[dict[str, int]], path: Path) -> None:
    """The ranks that AdaLoRA leaves, mean over seeds: modules down, depth across."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    modules: list[str] = []
    depth = 0
    for layer in runs[0]:
        block, module = _place(layer)
        depth = max(depth, block + 1)
        if module not in modules:
            modules.append(module)
    table = [[float("nan")] * depth for _ in modules]
    for layer in runs[0]:
        block, module = _place(layer)
        table[modules.index(module)][block] = statistics.mean(run[layer] for run in runs)
    figure = Figure(figsize=(1.5 + 0.5 * depth, 1.2 + 0.5 * len(modules)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    picture = axes.imshow(table, cmap="viridis", vmin=0, aspect="auto")
    middle = max(max(row) for row in table) / 2
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            color = "black" if value > middle else "white"
            axes.text(x, y, f"{value:.0f}", ha="center", va="center", color=color, fontsize=8)
    axes.set_yticks(range(len(modules)), modules)
    axes.set_xticks(range(depth))
    axes.set(xlabel="layer", title=f"ranks that AdaLoRA leaves, mean of {len(runs)} seeds")
    figure.colorbar(picture, ax=axes, label="rank")
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))


def _place(layer: str) -> tuple[int, str]:
    parts = layer.split(".")
    block = next(int(part) for part in parts if part.isdigit())
    return block, parts[-1]
