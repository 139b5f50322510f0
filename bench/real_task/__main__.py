"""`python -m lorafam.bench.real_task [--steps N] [--output FOLDER]`: rates with the first seed, then
the other seeds at the rate that was chosen; about half an hour. What is there already isn't run again.

Leaves report.md, ranks.png and a folder for each run.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from lorafam.backends.numba_cpu.processor import model_name

from ..demo.__main__ import child
from ..demo.material import prepare_model, prepare_text
from .plan import LEARNING_RATES, METHODS, SEEDS, STEPS
from .report import draw_ranks, report


def run(key: str, rate: float, seed: int, steps: int, model: Path, text: Path, output: Path) -> dict[str, Any]:
    """The summary of one run; made now, if it isn't there."""
    folder = output / f"{key}-{rate:g}-{seed}-{steps}"
    summary = folder / "summary.json"
    if not summary.is_file():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"{key}, learning rate {rate:g}, seed {seed}", flush=True)
        child("real_task.one_run", key, f"{rate:g}", str(seed), str(steps), str(model), str(text), str(folder))
    return json.loads(summary.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--output", type=Path, default=Path("real-task-output"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    child("demo.material", str(given.output))
    model, text = prepare_model(given.output), prepare_text(given.output)
    task = (given.steps, model, text, given.output)
    results: dict[str, Any] = {}
    chosen = 0.0
    for method in METHODS:
        rates = LEARNING_RATES.get(method.key, (chosen,))
        tried = {one: run(method.key, one, SEEDS[0], *task) for one in rates}
        rate = min(tried, key=lambda one: tried[one]["training_loss"])
        chosen = rate if method.key == "lora" else chosen
        others = [run(method.key, rate, seed, *task) for seed in SEEDS[1:]]
        results[method.key] = {"rate": rate, "tried": tried, "runs": [tried[rate], *others]}
    draw_ranks([one["ranks"] for one in results["adalora"]["runs"]], given.output / "ranks.png")
    page = report(results, given.steps, model_name())
    (given.output / "report.md").write_text(page, encoding="utf-8")
    print(f"\n{page}")


if __name__ == "__main__":
    main()
