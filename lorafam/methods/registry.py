"""The methods by name: a new one is a file beside this that registers its layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from .adapter_layer import AdapterLayer

Layer = TypeVar("Layer", bound=type[AdapterLayer])

METHODS: dict[str, type[AdapterLayer]] = {}


def register(name: str) -> Callable[[Layer], Layer]:
    """Makes a layer class known as `AdapterConfig(method=name)`."""

    def add(layer: Layer) -> Layer:
        layer.method = name
        METHODS[name] = layer
        return layer

    return add
