"""What the demo runs, all fixed before any result is seen: runs, learning rates, steps, chunks, seed."""

from __future__ import annotations

from typing import NamedTuple

STEPS = 16
SEQUENCE_LENGTH = 128
HELD_OUT_TOKENS = 2048
RANK = 8
ALPHA = 16
SEED = 0
WARMED_UP, TIMED = 2, 12
# tokens, and how often they are generated
PROMPT, GENERATED, TURNS = 16, 16, 3


class Run(NamedTuple):
    """One fine-tuning run, in a process of its own."""

    key: str
    title: str
    library: str
    method: str
    quantize: str | None
    learning_rate: float = 2e-4
    steps: int = STEPS


RUNS = (
    Run("lora", "LoRA (dense base)", "lorafam", "lora", None),
    Run("qlora", "QLoRA", "lorafam", "lora", "nf4"),
    Run("qdora", "QDoRA", "lorafam", "dora", "nf4"),
    # AdaLoRA starts from E = 0 with A and B near 0.02, so its first steps change little: higher rate, more steps
    Run("adalora", "AdaLoRA (NF4 base)", "lorafam", "adalora", "nf4", learning_rate=5e-3, steps=32),
    Run("peft-lora", "PEFT LoRA (dense base)", "peft", "lora", None),
    Run("peft-qlora", "PEFT + bitsandbytes QLoRA", "peft", "lora", "nf4"),
    Run("peft-qdora", "PEFT + bitsandbytes QDoRA", "peft", "dora", "nf4"),
)
BY_KEY = {run.key: run for run in RUNS}
PAIRS = (("lora", "peft-lora"), ("qlora", "peft-qlora"), ("qdora", "peft-qdora"))
