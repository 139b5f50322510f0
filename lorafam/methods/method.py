"""What a method says of itself: the settings it has, its tensors, and how PEFT's files tell them. Everything else asks
this.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Set
from dataclasses import MISSING, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from ..config import AdapterConfig
from .adapter import Adapter, AdapterSettings, lora_scaling

_DEFAULTS: dict[str, Any] = {
    one.name: one.default if one.default_factory is MISSING else one.default_factory() for one in fields(AdapterConfig)
}


class Method:
    """The class part of an `AdapterLayer`; a method overrides what is its own.

    tensor_names      attribute of an `Adapter` → ending of the tensor's name in adapter_model.safetensors
    rank_axes         attribute → the axis of the ranks
    marker            begins the endings of its tensors' names, after a dot
    size_axes         which attribute tells N and K of a layer, and on which axis
    told_state        entries of an adapter's state that only tell what it belongs to: a state with others is refused
    shared_names      attribute of what all layers share → its name there
    peft_type         as in adapter_config.json
    peft_keys         keys of adapter_config.json that this method reads
    unknown_keys      keys of adapter_config.json that this peft_type hasn't
    lacks             settings that it doesn't have → why; they stay at their defaults
    own_settings      what only this method has, with defaults (`AdapterConfig.method_settings`)
    allocates_ranks   whether a `RankAllocator` moves its ranks
    adds_up           whether a layer is its base and s B A: rows of a batch may choose, adapters be combined
    adapts_parameters whether `LoraParameter` is this method's
    """

    method: ClassVar[str]
    tensor_names: ClassVar[Mapping[str, str]]
    marker: ClassVar[str] = "lora_"
    rank_axes: ClassVar[Mapping[str, int]] = {"A": 0, "B": 1}
    size_axes: ClassVar[Mapping[str, tuple[str, int]]] = {"N": ("B", 0), "K": ("A", 1)}
    told_state: ClassVar[Set[str]] = frozenset()
    shared_names: ClassVar[Mapping[str, str]] = {}
    peft_type: ClassVar[str] = "LORA"
    peft_keys: ClassVar[Set[str]] = {
        "r", "init_r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "lora_bias", "rank_pattern",
        "alpha_pattern", "init_lora_weights",
    }  # fmt: skip
    unknown_keys: ClassVar[Set[str]] = frozenset()
    lacks: ClassVar[Mapping[str, str]] = {}
    own_settings: ClassVar[Mapping[str, Any]] = {}
    allocates_ranks: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False
    adapts_parameters: ClassVar[bool] = False

    @classmethod
    def check(cls, given: AdapterConfig | AdapterSettings) -> None:
        """Raises ValueError for a setting that the method doesn't have."""
        for setting, why in cls.lacks.items():
            value, default = getattr(given, setting, None), _DEFAULTS[setting]
            if value is not None and value != default:
                raise ValueError(f"{setting}: {why}, expected {default!r} with {cls.method!r}, got {value!r}")

    @classmethod
    def lacking(cls) -> dict[str, Any]:
        """What `lacks` names, with defaults."""
        return {name: _DEFAULTS[name] for name in cls.lacks}

    @classmethod
    def check_own(cls, given: Mapping[str, Any]) -> None:
        """The same of `method_settings`."""
        for name in given:
            if name not in cls.own_settings:
                near = difflib.get_close_matches(name, cls.own_settings, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {sorted(cls.own_settings) or 'none'}"
                raise ValueError(f"method_settings: the method {cls.method!r} has no {name!r}; {hint}")

    @classmethod
    def own_of(cls, config: AdapterConfig) -> dict[str, Any]:
        """`method_settings`, what isn't given at its default."""
        return {**cls.own_settings, **config.method_settings}

    @classmethod
    def layer_settings(cls, config: AdapterConfig, bases: Iterable[nn.Module]) -> dict[str, Any]:
        """What the layers of one adapter get beside `AdapterSettings`, those around `bases`."""
        return cls.own_of(config)

    @classmethod
    def shared_tensors(cls, config: AdapterConfig, adapter: Adapter) -> dict[str, Tensor]:
        """Of `shared_names`, what a file has."""
        return {}

    @classmethod
    def put_shared(cls, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        """Takes a file's. Raises ValueError for other sizes."""

    @classmethod
    def check_shared(cls, config: AdapterConfig, adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
        """The same, before anything is changed."""

    @classmethod
    def scaling_of(cls, rank: int, alpha: float, rslora: bool) -> float:
        """What multiplies B A."""
        return lora_scaling(rank, alpha, rslora)

    @classmethod
    def reads(cls, values: Mapping[str, Any]) -> bool:
        """Whether an adapter_config.json of this `peft_type` is this method's."""
        return True

    @classmethod
    def from_peft(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of `AdapterConfig` from an adapter_config.json, beside those that all methods have. Raises
        ValueError with the key.
        """
        raise NotImplementedError

    @classmethod
    def to_peft(cls, config: AdapterConfig, adapters: Mapping[str, Adapter], model: nn.Module) -> dict[str, Any]:
        """The keys of adapter_config.json that aren't the same for all methods; `adapters` by path."""
        raise NotImplementedError
