"""A row: a tiny model of one architecture, how its inputs are made, and what isn't expected of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

KINDS = (
    "decoder",
    "mixture",
    "state space",
    "encoder",
    "encoder-decoder",
    "vision",
    "audio",
    "vision-language",
)
# the same in all configurations
VOCABULARY, HIDDEN, INNER = 96, 64, 128

Inputs = Callable[[Any, int], dict[str, Any]]


class Refusal(NamedTuple):
    """An error that is right: in which ways (empty: all) and columns (empty: all), words of its text, the reason that
    the page gives.
    """

    words: str
    reason: str
    ways: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()


class Architecture(NamedTuple):
    """`name` as in transformers' model_type; `model` a class of transformers, `config` its configuration's arguments.

    `inputs` makes a batch, with labels, from the configuration and a seed; `outputs` are the names of what is compared.
    `modules`: what is adapted where it isn't every linear layer but the output head; `parameters`: what PEFT adapts
    besides (`target_parameters`). `beams`: whether it generates with several. `dense`: what bitsandbytes must leave
    dense, since the model computes with its weight itself. `note` stands in the page.
    """

    name: str
    kind: str
    model: str
    config: Mapping[str, Any]
    inputs: Inputs
    outputs: tuple[str, ...] = ("logits",)
    generates: bool = False
    beams: bool = True
    dense: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()
    note: str = ""
