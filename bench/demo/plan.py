"""What the demo runs, all fixed before any result is seen: runs, learning rates, steps, chunks, seed."""

from __future__ import annotations

from typing import NamedTuple

STEPS = 16
SEQUENCE_LENGTH = 128
HELD_OUT_TOKENS = 4096
RANK = 8
ALPHA = 16
SEED = 0
WARMED_UP, TIMED = 2, 7


class Run(NamedTuple):
    """One fine-tuning run, in a process of its own."""

    key: str
    title: str
    library: str
    method: str
    quantize: str | None
    learning_rate: float = 2e-4


RUNS = (
    Run("lora", "LoRA (dense base)", "lorafam", "lora", None),
    Run("qlora", "QLoRA", "lorafam", "lora", "nf4"),
    Run("qdora", "QDoRA", "lorafam", "dora", "nf4"),
    # AdaLoRA starts from E = 0 and B, A near 0.02: its authors use rates several times LoRA's
    Run("adalora", "AdaLoRA (NF4 base)", "lorafam", "adalora", "nf4", learning_rate=1e-3),
    Run("peft-qlora", "PEFT + bitsandbytes QLoRA", "peft", "lora", "nf4"),
    Run("peft-qdora", "PEFT + bitsandbytes QDoRA", "peft", "dora", "nf4"),
)
BY_KEY = {run.key: run for run in RUNS}
PAIRS = (("qlora", "peft-qlora"), ("qdora", "peft-qdora"))
