"""A launch that is known already: its compiled kernel and its arguments, of which only tensors' addresses change.

The decode path is called for every layer and every token, and there Python takes longer than the GPU. Checking an op's
arguments, choosing a configuration and finding the compiled kernel depend on shapes, dtypes and alignments alone, so a
call that is like an earlier one in all of these goes straight to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

# makes a launch with the kernel's arguments, in its order
Start = Callable[[list[Any]], None]


class Started(NamedTuple):
    """A launch that was made: how to make it again, and its arguments in the kernel's order."""

    start: Start
    arguments: dict[str, Any]


# by op: what is known, by the ids of weights
_known: list[dict[Any, Any]] = []
_MOST_KNOWN = 1 << 14


def known() -> dict[Any, Any]:
    """Where an op keeps what it knows of a weight or a group."""
    _known.append({})
    return _known[-1]


def remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    """Puts it there; when there is no more room, all that was known is forgotten."""
    if len(known) >= _MOST_KNOWN:
        forget()
    known[key] = value


def forget() -> None:
    """No call is known any more."""
    for one in _known:
        one.clear()


class Replay:
    """A launch over an op's tensors."""

    def __init__(
        self, start: Start, arguments: list[Any], slots: list[tuple[int, int]], outputs: list[int], kept: list[Tensor]
    ):
        self._start, self._arguments, self._slots, self._outputs = start, arguments, slots, outputs
        # their addresses are among the arguments
        self._kept = kept

    @classmethod
    def of(
        cls,
        started: Started | None,
        tensors: Sequence[Tensor | None],
        fixed: Collection[int],
        outputs: Sequence[Tensor],
        kept: Sequence[Tensor | None],
    ) -> Replay | None:
        """Of a launch over `tensors` and what the backend keeps where it is. None where it can't be repeated: how isn't
        known, it was captured, it took a tensor made in the call, or two of the tensors start at one address that isn't
        `fixed`, the same in every call.
        """
        # a captured graph's memory is its own
        if started is None or (outputs[0].is_cuda and torch.cuda.is_current_stream_capturing()):
            return None
        given = [tensor.data_ptr() for tensor in tensors if tensor is not None]
        places = {tensor.data_ptr(): place for place, tensor in enumerate(tensors) if tensor is not None}
        made = {output.data_ptr(): place for place, output in enumerate(outputs)}
        staying = [tensor for tensor in kept if tensor is not None]
        stays = {tensor.data_ptr() for tensor in staying}
        arguments = list(started.arguments.values())
        slots: list[tuple[int, int]] = []
        written: dict[int, int] = {}
        for index, value in enumerate(arguments):
            if not isinstance(value, torch.Tensor):
                continue
            address = value.data_ptr()
            # of the call's own tensors none is kept
            if address in made:
                written[made[address]] = index
                arguments[index] = None
            elif address in places:
                slots.append((index, places[address]))
                arguments[index] = None
            elif address in stays:
                arguments[index] = address if outputs[0].is_cuda else value
            else:
                return None
        if any(given.count(address) > 1 and address not in fixed for address in given) or len(written) != len(outputs):
            return None
        return cls(started.start, arguments, slots, [written[place] for place in range(len(outputs))], staying)

    def __call__(self, tensors: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        """Launches over `tensors`, in the order of the first call: addresses on a GPU, else tensors."""
        arguments = self._arguments.copy()
        for index, place in self._slots:
            arguments[index] = tensors[place]
        for index, output in zip(self._outputs, outputs, strict=True):
            arguments[index] = output.data_ptr() if output.is_cuda else output
        try:
            self._start(arguments)
        except BaseException:
            # it may leave arrivals counted
            forget()
            raise
