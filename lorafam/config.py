"""What a user can set, checked at once: a wrong value raises ValueError naming it, before any model is touched."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

METHODS = ("lora", "dora", "adalora")
QUANT_TYPES = ("nf4", "fp4")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
INITIALISERS = ("default", "gaussian", "pissa", "pissa_niter_[n]", "olora", "loftq")
# what takes a part of the base weight into the adapter
_FROM_WEIGHT = re.compile(r"pissa|pissa_niter_\d+|olora|loftq")
DORA_DROPOUTS = ("adapter", "input")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_init(name: str, value: object) -> None:
    if value not in ("default", "gaussian") and not starts_from_weight(value):
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, INITIALISERS))}, got {value!r}")


def starts_from_weight(init: object) -> bool:
    """Whether A and B are formed from the base weight, which changes it."""
    return isinstance(init, str) and _FROM_WEIGHT.fullmatch(init) is not None


def power_iterations(init: str) -> int | None:
    """n of "pissa_niter_n"; None for a whole SVD."""
    _, _, count = init.partition("_niter_")
    return int(count) if count else None


def check_rank(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_alpha(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected a number that isn't negative, got {value!r}")


def check_dropout_probability(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{name}: expected a probability in [0, 1), got {value!r}")


@dataclass(frozen=True)
class AdapterConfig:
    """What `lorafam.adapt` puts on a model.

    `target_modules`: names that end a module's path ("q_proj"), one regular expression that matches it whole, or None
    for every linear layer but the output head. `rank_pattern`, `alpha_pattern`: path endings (regular expressions, as
    in PEFT) to values. `init`: where A and B start; "pissa", "olora" and "loftq" take a part of the weight into them
    (`methods.initialisers`). `dora_norm_gradient`: DoRA with the gradient through its norm, which the paper drops.
    `quantize`: first turn the model's linear layers, output head excepted, into 4-bit ones.
    """

    method: str = "lora"
    r: int = 8
    alpha: float = 16
    dropout: float = 0.0
    target_modules: str | Sequence[str] | None = None
    quantize: str | None = None
    block_size: int = 64
    double_quant: bool = True
    rslora: bool = False
    init: str = "default"
    bias: bool = False
    dora_dropout: str = "adapter"
    dora_norm_gradient: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_rank("r", self.r)
        check_alpha("alpha", self.alpha)
        check_dropout_probability("dropout", self.dropout)
        check_choice("quantize", self.quantize, (*QUANT_TYPES, None))
        check_choice("block_size", self.block_size, BLOCK_SIZES)
        check_init("init", self.init)
        check_choice("dora_dropout", self.dora_dropout, DORA_DROPOUTS)
        if self.target_modules is not None and not self.target_modules:
            raise ValueError("target_modules: expected at least one name, got none")
        if self.init == "loftq" and self.quantize is None:
            raise ValueError("init: 'loftq' chooses 4-bit codes and factors together, expected quantize='nf4' or 'fp4'")
        if self.init != "default" and self.method == "adalora":
            raise ValueError(f"init: AdaLoRA has one initialisation, expected 'default', got {self.init!r}")
        if self.rslora and self.method == "adalora":
            raise ValueError("rslora: AdaLoRA has a scaling of its own, expected False")
        if self.bias and self.method != "lora":
            raise ValueError(f"bias: only the method 'lora' has a bias of its own, expected False with {self.method!r}")
        if self.method == "adalora" and (self.rank_pattern or self.alpha_pattern):
            raise ValueError("rank_pattern, alpha_pattern: AdaLoRA allocates its ranks itself, expected none")
        for name, rank in self.rank_pattern.items():
            check_rank(f"rank_pattern[{name!r}]", rank)
        for name, alpha in self.alpha_pattern.items():
            check_alpha(f"alpha_pattern[{name!r}]", alpha)
