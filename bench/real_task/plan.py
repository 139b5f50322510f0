"""Methods, budgets and seeds, fixed before any result is seen.

Equal budgets: the same steps over the same chunks, the same rank a layer on average in the end. A learning rate is
chosen by the training loss of seed 0, held-out text has no part in that; QLoRA and QDoRA, whose A and B start and scale
as LoRA's, take LoRA's.
"""

from __future__ import annotations

from typing import Any, NamedTuple

STEPS = 48
RANK, ADALORA_INITIAL_RANK = 8, 12
ALPHA = 16
SEQUENCE_LENGTH, HELD_OUT_TOKENS = 128, 4096
LEARNING_RATES = {"lora": (2e-4, 1e-3, 5e-3), "adalora": (1e-3, 5e-3)}
SEEDS = (0, 1, 2)
# of the loss that chooses the rate
LAST = 12


class Method(NamedTuple):
    """A method and its settings beside the common ones."""

    key: str
    title: str
    settings: dict[str, Any]


METHODS = (
    Method("lora", "LoRA (dense base)", {"method": "lora"}),
    Method("qlora", "QLoRA", {"method": "lora", "quantize": "nf4"}),
    Method("qdora", "QDoRA", {"method": "dora", "quantize": "nf4"}),
    Method(
        "adalora",
        "AdaLoRA (NF4 base)",
        {"method": "adalora", "quantize": "nf4", "rank": ADALORA_INITIAL_RANK, "target_rank": RANK},
    ),
)
BY_KEY = {method.key: method for method in METHODS}
