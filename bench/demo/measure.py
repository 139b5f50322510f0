"""Measures what needs two models alive: the pace against PEFT's, and PEFT reading our adapters.

`python -m lorafam.bench.demo.measure MODEL TEXT OUTPUT` writes OUTPUT/measured.json.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

from .check import same_logits
from .pace import measure
from .plan import BY_KEY, HELD_OUT_TOKENS, PAIRS, RUNS, SEQUENCE_LENGTH
from .quiet import silence


def main(model: Path, text: Path, output: Path) -> None:
    silence()
    from lorafam.finetune.base_model import load_tokenizer
    from lorafam.finetune.data import load_chunks

    chunks = load_chunks(str(text), load_tokenizer(str(model)), SEQUENCE_LENGTH, HELD_OUT_TOKENS)
    paces = {}
    for ours, theirs in PAIRS:
        print(f"  {BY_KEY[ours].title} and {BY_KEY[theirs].title}: steps, then generating", flush=True)
        paces[ours] = measure(ours, theirs, model, chunks.train)
        gc.collect()
    logits = {}
    for run in RUNS:
        if run.library == "lorafam":
            print(f"  {run.title}: its adapter read by PEFT, logits in fp32 and fp64", flush=True)
            try:
                same_logits(run, model, output / run.key / "adapter", chunks.held_out)
            except AssertionError as error:
                logits[run.key] = str(error)
            else:
                logits[run.key] = ""
            gc.collect()
    result = {"pace": paces, "logits": logits}
    (output / "measured.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
