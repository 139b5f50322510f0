"""The methods by name: a new one is a file beside this that registers its layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from .. import config
from .adapter_layer import AdapterLayer

Layer = TypeVar("Layer", bound=type[AdapterLayer])

METHODS: dict[str, type[AdapterLayer]] = {}
# what a method puts around an nn.Embedding
EMBEDDINGS: dict[str, type[AdapterLayer]] = {}


def register(name: str) -> Callable[[Layer], Layer]:
    """Makes a layer class known as `AdapterConfig(method=name)`."""

    def add(layer: Layer) -> Layer:
        layer.method = name
        METHODS[name] = config.METHODS[name] = layer
        return layer

    return add


def register_embedding(name: str) -> Callable[[Layer], Layer]:
    """Makes a layer class the method's around embeddings."""

    def add(layer: Layer) -> Layer:
        layer.method = name
        EMBEDDINGS[name] = layer
        return layer

    return add


def layer_class(method: str, base: nn.Module) -> type[AdapterLayer]:
    """The method's layer around `base`. Raises ValueError where it has none."""
    if not isinstance(base, nn.Embedding):
        return METHODS[method]
    if method not in EMBEDDINGS:
        names = " or ".join(map(repr, EMBEDDINGS))
        raise ValueError(f"method: expected {names} for an embedding, got {method!r}")
    return EMBEDDINGS[method]


def method_of_peft(values: Mapping[str, Any]) -> type[AdapterLayer]:
    """The method of an adapter_config.json. Raises ValueError for a peft_type that none has."""
    kind = values.get("peft_type")
    kinds = sorted({method.peft_type for method in METHODS.values()})
    if kind not in kinds:
        raise ValueError(f"expected peft_type {' or '.join(kinds)}, got {kind!r}")
    return next(method for method in METHODS.values() if method.peft_type == kind and method.reads(values))
