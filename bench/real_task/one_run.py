"""One run in a process of its own: `python -m lorafam.bench.real_task.one_run KEY RATE SEED STEPS MODEL TEXT OUTPUT`.

Writes OUTPUT/summary.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..demo.quiet import silence
from .plan import ALPHA, BY_KEY, HELD_OUT_TOKENS, LAST, RANK, SEQUENCE_LENGTH


def ranks_of(adapter: Path) -> dict[str, int]:
    """Path of each AdaLoRA layer → ranks that are left."""
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    return {path.removesuffix(".lora_E"): sum(kept) for path, kept in (config.get("rank_pattern") or {}).items()}


def main(key: str, rate: float, seed: int, steps: int, model: str, text: str, output: Path) -> None:
    silence()
    from rich.console import Console

    from lorafam.finetune import FinetuneConfig, finetune
    from lorafam.finetune.progress import ConsoleReporter

    settings: dict[str, Any] = {"rank": RANK, "alpha": ALPHA, **BY_KEY[key].settings}
    config = FinetuneConfig(
        model=model,
        text=text,
        output=str(output),
        sequence_length=SEQUENCE_LENGTH,
        held_out_tokens=HELD_OUT_TOKENS,
        steps=steps,
        learning_rate=rate,
        seed=seed,
        save_every=0,
        evaluate_every=0,
        **settings,
    )
    result = finetune(config, reporter=ConsoleReporter(Console(stderr=True)))
    records = [json.loads(line) for line in result.log.read_text(encoding="utf-8").splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    summary = {
        "trainable_parameters": result.trainable_parameters,
        "before": result.before.mean,
        "after": result.after.mean,
        "training_loss": sum(losses[-LAST:]) / len(losses[-LAST:]),
        "seconds_per_step": result.seconds_per_step,
        "memory": result.extra_memory,
        "ranks": ranks_of(result.adapter) if settings["method"] == "adalora" else {},
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given[0], float(given[1]), int(given[2]), int(given[3]), given[4], given[5], Path(given[6]))
