"""One run of the demo, in a process of its own: `python -m lorafam.bench.demo.one_run KEY MODEL TEXT OUTPUT [BEFORE]`.

Writes OUTPUT/summary.json: losses, seconds a step, memory, sizes. BEFORE is the folder of a run over the same base,
whose loss before training it takes over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from .plan import ALPHA, BY_KEY, HELD_OUT_TOKENS, RANK, SEED, SEQUENCE_LENGTH, Run
from .quiet import silence


def settings(run: Run, model: Path, text: Path, output: Path) -> Any:
    """The run as `lorafam finetune` would be told it."""
    from lorafam.finetune import FinetuneConfig

    return FinetuneConfig(
        model=str(model),
        text=str(text),
        output=str(output),
        sequence_length=SEQUENCE_LENGTH,
        held_out_tokens=HELD_OUT_TOKENS,
        method=run.method,
        rank=RANK,
        alpha=ALPHA,
        quantize=run.quantize,
        steps=run.steps,
        learning_rate=run.learning_rate,
        seed=SEED,
        save_every=0,
        evaluate_every=0,
    )


def base_bits(model: Any) -> float | None:
    """Bits a parameter of the quantised layers: codes, absmax codes, nested absmax and offset, over all of them."""
    from lorafam import NF4Linear, NF4Weight
    from lorafam.methods.base_weight import is_bitsandbytes_4bit

    weights = [module.weight for module in model.modules() if isinstance(module, NF4Linear)]
    weights += [NF4Weight.from_bitsandbytes(module) for module in model.modules() if is_bitsandbytes_4bit(module)]
    if not weights:
        return None
    return 8 * sum(weight.nbytes for weight in weights) / sum(weight.shape.numel() for weight in weights)


def main(key: str, model: Path, text: Path, output: Path, before: Path | None = None) -> None:
    silence()
    from rich.console import Console

    from lorafam.finetune import finetune
    from lorafam.finetune.evaluate import HeldOut
    from lorafam.finetune.progress import ConsoleReporter

    from .pace import build

    output.mkdir(parents=True, exist_ok=True)
    run = BY_KEY[key]
    built = build(run, model)
    known = None
    if before is not None:
        known = HeldOut(tuple(json.loads((before / "held_out.json").read_text(encoding="utf-8"))["before"]))
    reporter = ConsoleReporter(Console(stderr=True))
    result = finetune(settings(run, model, text, output), model=built, reporter=reporter, before=known)
    fall, fall_error = result.fall
    summary = {
        "title": run.title,
        "trainable_parameters": result.trainable_parameters,
        "bits_per_base_parameter": base_bits(built),
        "before": result.before.mean,
        "before_error": result.before.standard_error,
        "after": result.after.mean,
        "after_error": result.after.standard_error,
        "fall": fall,
        "fall_error": fall_error,
        "seconds_per_step": result.seconds_per_step,
        "memory": result.extra_memory,
        "held_out_tokens": len(result.after.losses) * SEQUENCE_LENGTH,
    }
    (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], *(Path(argument) for argument in sys.argv[2:]))
