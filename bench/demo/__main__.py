"""`python -m lorafam.bench.demo`: prepares model and text, makes every run in a process of its own, checks and reports.

Everything lands in ./demo-output: adapters in PEFT's format, a JSONL log and curves for each run, summary.json,
loss.png. Exit code 1 when a loss doesn't fall, logits differ, or memory is higher than PEFT's; a pace that falls short
is told.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from .material import LICENCE, prepare_model, prepare_text
from .plan import HELD_OUT_TOKENS, PAIRS, RUNS, SEQUENCE_LENGTH
from .verdict import FAILED, Summary, claims, plot, table

OUTPUT = Path("demo-output")


def child(module: str, *arguments: str) -> None:
    """Runs a module of `bench` in a fresh process, so that its memory is its own; its failure ends the caller."""
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    command = [sys.executable, "-m", f"lorafam.bench.{module}", *arguments]
    subprocess.run(command, check=True, env={**os.environ, **quiet})


def main() -> int:
    start = time.monotonic()
    print(f"Model: {LICENCE}")
    print("Text: the language reference that CPython carries (pydoc_data.topics, PSF licence)")
    OUTPUT.mkdir(exist_ok=True)
    child("demo.material", str(OUTPUT))
    model, text = prepare_model(OUTPUT), prepare_text(OUTPUT)
    summaries: dict[str, Summary] = {}
    # the bare model's loss is measured once a base
    first: dict[str | None, str] = {}
    for run in RUNS:
        folder = OUTPUT / run.key
        shutil.rmtree(folder, ignore_errors=True)
        print(f"\n{run.title}: {run.steps} steps of {SEQUENCE_LENGTH} tokens", flush=True)
        before = [str(OUTPUT / first[run.quantize])] if run.quantize in first else []
        child("demo.one_run", run.key, str(model), str(text), str(folder), *before)
        first.setdefault(run.quantize, run.key)
        summaries[run.key] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    print("\nSteps of two live models in turn, and the adapters read by PEFT", flush=True)
    child("demo.measure", str(model), str(text), str(OUTPUT))
    measured = json.loads((OUTPUT / "measured.json").read_text(encoding="utf-8"))
    plot([(run.title, OUTPUT / run.key / "log.jsonl") for run in RUNS], OUTPUT / "loss.png")
    return report(summaries, measured, time.monotonic() - start)


def report(summaries: dict[str, Summary], measured: dict[str, Any], seconds: float) -> int:
    from lorafam.backends.numba_cpu.processor import model_name

    from .pace import Pace, Paces

    paces = {ours: Paces(*(Pace(*pace) for pace in measured["pace"][ours])) for ours, _ in PAIRS}
    rows = claims(summaries, paces, measured["logits"])
    print(f"\n{table(summaries)}\n")
    tokens = max(summary["held_out_tokens"] for summary in summaries.values())
    print(f"Held-out loss on {tokens:,} tokens (at least {HELD_OUT_TOKENS:,}), mean ± standard error over chunks.\n")
    for state, seen in rows:
        print(f"{state:6}  {seen}")
    print(f"\nPaces depend on the processor and on what else runs: here {model_name()}, {os.cpu_count()} threads.")
    print(f"\nAdapters (PEFT's format), logs, curves: {OUTPUT}/*/   all curves: {OUTPUT}/loss.png")
    print(f"{seconds / 60:.1f} minutes")
    result = {"runs": summaries, **measured, "minutes": seconds / 60}
    (OUTPUT / "summary.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 1 if any(state == FAILED for state, _ in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
