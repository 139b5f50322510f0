"""How the steps of a call become known: it runs once as ever, and is listened to.

Torch's operations are seen by a mode, below autograd and autocast; launches are told of by `launch`. A call in which
something is decided by a tensor's value, or that uses a tensor from elsewhere, can't be repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ...compat.torch import TorchDispatchMode
from ...ops.library import OPS
from ..selection import run
from .memory import is_kept
from .prepared_call import Place, PreparedCall, Started, Step, allocation, launch, operation, tensors_of

Tensor = torch.Tensor

_ALLOCATE = {
    torch.ops.aten.empty.memory_format,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.empty_strided.default,
    torch.ops.aten.new_empty.default,
    torch.ops.aten.new_empty_strided.default,
}
_BY_VALUE = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}


class _Operation(NamedTuple):
    """One of torch's operations; places for tensors in its arguments, and those of new tensors that it gave."""

    function: Any
    args: list[Any]
    kwargs: dict[str, Any]
    results: list[int]


class Preparation(TorchDispatchMode):
    """Listens to a call over these tensors."""

    def __init__(self, given: Sequence[Tensor]):
        super().__init__()
        self._given, self._on_gpu = len(given), given[0].is_cuda
        # held, so that no other tensor gets the identity of one that is gone
        self._tensors: list[Tensor] = []
        self._places: dict[int, int] = {}
        for tensor in given:
            self._add(tensor)
        self._kept: set[int] = set()
        # views of all bytes of another: a launch takes either
        self._same_bytes: dict[int, int] = {}
        self._events: list[_Operation | Started] = []
        self._repeatable = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "lorafam":
            with self:
                # not itself, but what it does
                return run(OPS[func.overloadpacket.__name__], "cuda" if self._on_gpu else "cpu", *args)
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        own = [one for one in (result if isinstance(result, list | tuple) else [result]) if isinstance(one, Tensor)]
        new = [one for one in own if id(one) not in self._places]
        if _BY_VALUE.intersection(func.tags) or (new and len(new) < len(own)):
            self._repeatable = False
        event = _Operation(func, self._with_places(list(args)), self._with_places(kwargs), [*map(self._add, new)])
        self._events.append(event)
        if func.is_view and len(new) == 1 and isinstance(args[0], Tensor):
            source = args[0]
            if source.data_ptr() == new[0].data_ptr() and source.nbytes == new[0].nbytes:
                self._same_bytes[event.results[0]] = self._read_at(source)
        return result

    def launched(self, started: Started | None) -> None:
        """Listens to a launch; None is one that can't be made again."""
        if started is None:
            self._repeatable = False
            return
        for tensor in tensors_of(started):
            self._place(tensor)
        self._events.append(started)

    def call(self, result: Any) -> PreparedCall | None:
        """The call that was listened to, and had this result; None where it can't be repeated, or launched nothing."""
        result = self._with_places(result)
        if not self._repeatable or not any(isinstance(event, Started) for event in self._events):
            return None
        steps: list[tuple[Step, list[int]]] = []
        needed = _places_in(result)
        # from the last on: what no later step needs isn't done, and isn't kept
        for event in reversed(self._events):
            if isinstance(event, Started):
                used = {self._read_at(tensor) for tensor in tensors_of(event)}
            elif needed.intersection(event.results) or event.function._schema.is_mutable:
                used = _places_in([event.args, event.kwargs])
            else:
                continue
            made = set() if isinstance(event, Started) else set(event.results)
            steps.append((self._step(event), [place for place in (used | made) - needed if self._is_own(place)]))
            needed |= used
        beside = range(self._given, len(self._tensors))
        kept = [self._tensors[place] if place in self._kept else None for place in beside]
        return PreparedCall(kept, steps[::-1], result)

    def _is_own(self, place: int) -> bool:
        return place >= self._given and place not in self._kept

    def _read_at(self, tensor: Tensor) -> int:
        """The place that a launch over `tensor` reads."""
        place = self._places[id(tensor)]
        return self._same_bytes.get(place, place)

    def _step(self, event: _Operation | Started) -> Step:
        if isinstance(event, Started):
            return launch(event, self._read_at, self._on_gpu)
        if event.function in _ALLOCATE:
            (place,) = event.results
            return allocation(place, self._tensors[place])
        return operation(event.function, event.args, event.kwargs, event.results)

    def _add(self, tensor: Tensor) -> int:
        place = self._places[id(tensor)] = len(self._tensors)
        self._tensors.append(tensor)
        return place

    def _place(self, tensor: Tensor) -> int:
        place = self._places.get(id(tensor))
        if place is None:
            # the call neither was given it nor made it
            self._repeatable &= is_kept(tensor)
            place = self._add(tensor)
            self._kept.add(place)
        return place

    def _with_places(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Place(self._place(value))
        if isinstance(value, dict):
            return {name: self._with_places(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            parts = [self._with_places(one) for one in value]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        return value


def _places_in(value: Any) -> set[int]:
    if isinstance(value, Place):
        return {value.at}
    if isinstance(value, dict):
        value = list(value.values())
    found: set[int] = set()
    if isinstance(value, list | tuple):
        for one in value:
            found |= _places_in(one)
    return found
