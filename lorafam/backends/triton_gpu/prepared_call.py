"""A call that was made before: its launches and torch's operations between them, of which tensors alone are new."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

# makes a launch with the kernel's arguments, in its order
Start = Callable[[list[Any]], None]
# reads and writes a call's tensors at their places
Step = Callable[[list[Any]], None]


class Started(NamedTuple):
    """A launch that was made: how to make it again, and its arguments in the kernel's order."""

    start: Start
    arguments: dict[str, Any]


class Place(NamedTuple):
    """Where a tensor stands among those of a call."""

    at: int


class PreparedCall:
    """Steps over tensors: those given, then `beside`, which are kept (a tensor) or made by a step (None).

    With each step the places of tensors that none needs after it: their memory is free then. `result` has places where
    it has tensors.
    """

    def __init__(self, beside: Sequence[Tensor | None], steps: Sequence[tuple[Step, Sequence[int]]], result: Any):
        self._beside, self._steps, self._result = list(beside), steps, result

    def __call__(self, given: Sequence[Tensor]) -> Any:
        """The result over the tensors given, in the order of the first call's."""
        tensors = [*given, *self._beside]
        for step, done in self._steps:
            step(tensors)
            for place in done:
                tensors[place] = None
        return filled(self._result, tensors)


def filled(value: Any, tensors: Sequence[Any]) -> Any:
    """`value`, in tuples and lists, with tensors for places."""
    kind = type(value)
    if kind is Place:
        return tensors[value.at]
    if kind is list:
        return [filled(one, tensors) for one in value]
    if isinstance(value, tuple):
        parts = [filled(one, tensors) for one in value]
        return kind(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def allocation(place: int, like: Tensor) -> Step:
    """Memory for a tensor such as this one."""
    shape, strides, dtype, device = tuple(like.shape), like.stride(), like.dtype, like.device

    def step(tensors: list[Any]) -> None:
        tensors[place] = torch.empty_strided(shape, strides, dtype=dtype, device=device)

    return step


def operation(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], results: Sequence[int]) -> Step:
    """One of torch's operations, with places among its arguments; `results`: where its tensors go."""

    def step(tensors: list[Any]) -> None:
        found = function(*filled(args, tensors), **{name: filled(one, tensors) for name, one in kwargs.items()})
        # none where it wrote into a tensor that is there
        for place, tensor in zip(results, found if isinstance(found, list | tuple) else (found,), strict=False):
            tensors[place] = tensor

    return step


def launch(started: Started, place_of: Callable[[Tensor], int], by_address: bool) -> Step:
    """A launch over the tensors at the places of its first ones: by their addresses on a GPU."""
    arguments = list(started.arguments.values())
    places: list[tuple[int, int]] = []
    bases: list[tuple[int, int]] = []
    for index, value in enumerate(arguments):
        base = getattr(value, "base", None)
        if isinstance(value, Tensor):
            places.append((index, place_of(value)))
            arguments[index] = None
        elif isinstance(base, Tensor):
            # a tensor descriptor
            bases.append((index, place_of(base)))
            arguments[index] = _over(None, value)
    start = started.start

    def step(tensors: list[Any]) -> None:
        own = arguments.copy()
        for index, place in places:
            own[index] = tensors[place].data_ptr() if by_address else tensors[place]
        for index, place in bases:
            own[index] = _over(tensors[place], own[index])
        start(own)

    return step


def tensors_of(started: Started) -> list[Tensor]:
    """What a launch reads and writes."""
    values = started.arguments.values()
    found = [value if isinstance(value, Tensor) else getattr(value, "base", None) for value in values]
    return [one for one in found if isinstance(one, Tensor)]


def _over(base: Tensor | None, descriptor: Any) -> Any:
    """The descriptor of another tensor."""
    other = copy.copy(descriptor)
    other.base = base
    return other
