"""What a user can set, checked at once: a wrong value raises ValueError naming it, before any model is touched."""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Protocol

from .kernels.formats import BLOCK_SIZES, QUANT_TYPES

INITIALISERS = ("default", "gaussian", "pissa", "pissa_niter_[n]", "olora", "loftq")
# what takes a part of the base weight into the adapter
_FROM_WEIGHT = re.compile(r"pissa|pissa_niter_[1-9]\d*|olora|loftq")
# PEFT's `bias`
BASE_BIASES = ("none", "all", "lora_only")
DORA_DROPOUTS = ("adapter", "input")
# what others call these settings, and methods that are a method and a base
_CALLED = {
    "lora_alpha": "alpha",
    "rank": "r",
    "lora_r": "r",
    "init_r": "r",
    "lora_dropout": "dropout",
    "use_rslora": "rslora",
    "init_lora_weights": "init",
    "lora_bias": "bias",
    "use_dora": "method='dora'",
    "peft_type": "method",
    "load_in_4bit": "quantize='nf4'",
    "quant_type": "quantize",
    "targets": "target_modules",
}


class MethodRules(Protocol):
    """What a configuration asks its method."""

    adapts_parameters: ClassVar[bool]
    allocates_ranks: ClassVar[bool]

    @classmethod
    def check(cls, given: AdapterConfig) -> None: ...

    @classmethod
    def check_own(cls, given: Mapping[str, Any]) -> None: ...


# the methods by name: each registers itself (`methods.registry`)
METHODS: dict[str, type[MethodRules]] = {}


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    # 64.0 and True equal choices that they aren't
    if not any(type(value) is type(choice) and value == choice for choice in choices):
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


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


def check_rank(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")


def check_count(name: str, value: object, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_weight(name: str, value: object) -> None:
    """A finite number that isn't negative."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: expected a finite number that isn't negative, got {value!r}")


def check_path(name: str, value: object) -> None:
    """Raises TypeError for anything but a path."""
    if not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name}: expected a path, got {value!r}")


def check_expression(name: str, value: object) -> None:
    """A regular expression."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name}: expected a regular expression, got {value!r}")
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{name}: {value!r} is no regular expression ({error})") from None


def check_names(name: str, value: object, *, expression: bool = False) -> None:
    """None, or names, none of them empty; with `expression` a regular expression too."""
    if value is None:
        return
    if isinstance(value, str) and expression:
        return check_expression(name, value)
    if not isinstance(value, Sequence | set | frozenset) or isinstance(value, str | bytes):
        raise ValueError(f"{name}: expected names, got {value!r}")
    wrong = next((one for one in value if not isinstance(one, str) or not one), None)
    if wrong is not None:
        raise ValueError(f"{name}: expected names, got {wrong!r} among them")
    if not value:
        raise ValueError(f"{name}: expected at least one name, got none")
    return None


def check_indices(name: str, value: object) -> None:
    """None, a layer's index, or several."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    wrong = [one for one in several if isinstance(one, bool) or not isinstance(one, int) or one < 0]
    if value is not None and (wrong or not several):
        raise ValueError(f"{name}: expected layers' indices, got {value!r}")


def check_tokens(name: str, value: object) -> None:
    """None, tokens, each once, or names of tables to such."""
    if value is None:
        return
    for key, tokens in value.items() if isinstance(value, Mapping) else [(None, value)]:
        told = name if key is None else f"{name}[{key!r}]"
        if key is not None and (not isinstance(key, str) or not key):
            raise ValueError(f"{name}: expected names of tables to tokens, got {key!r} among the names")
        if not isinstance(tokens, Sequence) or isinstance(tokens, str | bytes):
            raise ValueError(f"{told}: expected tokens, got {tokens!r}")
        wrong = [one for one in tokens if isinstance(one, bool) or not isinstance(one, int) or one < 0]
        if wrong or not tokens or len(set(tokens)) < len(tokens):
            raise ValueError(f"{told}: expected tokens, each once, got {wrong[0] if wrong else tokens!r}")


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
    `quantize`: first turn the model's linear layers, output head excepted, into 4-bit ones. `exclude_modules`,
    `layers_to_transform` and `layers_pattern` take some of the targets away, as in PEFT. `modules_to_save`: names of
    modules that are trained and saved whole; None: the new head of a model for a task (sequence classification, ...),
    if there is one, () none. `bias`: a trainable bias
    beside B (PEFT's lora_bias). `base_bias` (PEFT's bias): which of the base's own biases are trained and saved too:
    "none", "all", or those of adapted layers, "lora_only"; they are the base's, `disabled` leaves them.
    `trainable_token_indices`: tokens whose rows of the embedding table, and of what is tied to it, the adapter has for
    itself; a list, or tables' names to lists. `target_parameters`: names that end a parameter's name, of experts
    [E, N, K] above all; with `target_modules=[]` nothing else is adapted. `method_settings`: what only this method has,
    by name; its layer's docstring says what.
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
    exclude_modules: str | Sequence[str] | None = None
    layers_to_transform: int | Sequence[int] | None = None
    layers_pattern: str | Sequence[str] | None = None
    modules_to_save: Sequence[str] | None = None
    base_bias: str = "none"
    trainable_token_indices: Sequence[int] | Mapping[str, Sequence[int]] | None = None
    target_parameters: Sequence[str] | None = None
    method_settings: Mapping[str, Any] = field(default_factory=dict)

    def __new__(cls, *args: Any, **settings: Any) -> AdapterConfig:
        known = {one.name for one in fields(cls)}
        for name in settings:
            if name not in known:
                right = _CALLED.get(name)
                near = difflib.get_close_matches(name, known, n=1)
                hint = (
                    f"it is called {right}" if right else f"did you mean {near[0]}?" if near else "it has no such one"
                )
                raise TypeError(f"AdapterConfig: no setting {name!r}; {hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        right = self.method[1:] if isinstance(self.method, str) and self.method.startswith("q") else None
        if right in METHODS:
            raise ValueError(f"method: {self.method!r} is method={right!r} with quantize='nf4'")
        check_choice("method", self.method, tuple(METHODS))
        check_rank("r", self.r)
        check_alpha("alpha", self.alpha)
        check_dropout_probability("dropout", self.dropout)
        check_choice("quantize", self.quantize, (*QUANT_TYPES, None))
        check_choice("block_size", self.block_size, BLOCK_SIZES)
        check_init("init", self.init)
        check_choice("dora_dropout", self.dora_dropout, DORA_DROPOUTS)
        given: object = self.bias
        if given in ("none", "all", "lora_only"):
            told = f"bias: expected True or False, got {given!r}; PEFT's bias is called base_bias"
            raise ValueError(told)
        for flag in ("double_quant", "rslora", "bias", "dora_norm_gradient"):
            check_flag(flag, getattr(self, flag))
        check_names("target_parameters", self.target_parameters)
        for selector in ("target_modules", "exclude_modules"):
            # no module where parameters are named
            if selector != "target_modules" or self.target_parameters is None or self.target_modules != []:
                check_names(selector, getattr(self, selector), expression=True)
        if self.modules_to_save is None or len(self.modules_to_save):
            check_names("modules_to_save", self.modules_to_save)
        check_indices("layers_to_transform", self.layers_to_transform)
        check_choice("base_bias", self.base_bias, BASE_BIASES)
        check_tokens("trainable_token_indices", self.trainable_token_indices)
        # as in PEFT a single one needn't stand in a list
        check_names("layers_pattern", self.layers_pattern, expression=True)
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError("layers_to_transform: expected target_modules to be names, it is a regular expression")
        if self.layers_pattern is not None and self.layers_to_transform is None:
            raise ValueError("layers_pattern: expected layers_to_transform with it, got none")
        for pattern in ("rank_pattern", "alpha_pattern"):
            if not isinstance(getattr(self, pattern), Mapping):
                raise ValueError(f"{pattern}: expected names to values, got {getattr(self, pattern)!r}")
            for key in getattr(self, pattern):
                check_expression(f"{pattern}, the key", key)
        method = METHODS[self.method]
        if self.target_parameters is not None:
            plain = self.init in ("default", "gaussian") and not (self.dropout or self.bias)
            if not (method.adapts_parameters and plain):
                names = " or ".join(repr(name) for name, one in METHODS.items() if one.adapts_parameters)
                raise ValueError(f"target_parameters: expected method {names} with dropout 0, no bias, init 'default'")
        if self.init == "loftq" and self.quantize is None:
            told = " or ".join(f"quantize={name!r}" for name in QUANT_TYPES)
            raise ValueError(f"init: 'loftq' chooses codes and factors together, expected {told}")
        if not isinstance(self.method_settings, Mapping):
            raise ValueError(f"method_settings: expected names to values, got {self.method_settings!r}")
        method.check(self)
        method.check_own(self.method_settings)
        for name, rank in self.rank_pattern.items():
            check_rank(f"rank_pattern[{name!r}]", rank)
        for name, alpha in self.alpha_pattern.items():
            check_alpha(f"alpha_pattern[{name!r}]", alpha)
