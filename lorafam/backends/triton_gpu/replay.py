"""A launch that is known already: its compiled kernel and its arguments, of which only tensors' addresses change.

The decode path is called for every layer and every token, and there Python takes longer than the GPU. Checking an op's
arguments, choosing a configuration and finding the compiled kernel depend on shapes, dtypes and alignments alone, so a
call that is like an earlier one in all of these goes straight to the driver.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

Tensor = torch.Tensor

# makes a launch with the kernel's arguments, in its order
Start = Callable[[list[Any]], None]


class Started(NamedTuple):
    """A launch that was made: how to make it again, and its arguments in the kernel's order."""

    start: Start
    arguments: dict[str, Any]


class Replay:
    """A launch over an op's tensors."""

    def __init__(
        self, start: Start, arguments: list[Any], slots: list[tuple[int, int]], output: int, kept: list[Tensor]
    ):
        self._start, self._arguments, self._slots, self._output = start, arguments, slots, output
        # their addresses are among the arguments
        self._kept = kept

    @classmethod
    def of(
        cls, started: Started, tensors: Sequence[Tensor | None], output: Tensor, kept: list[Tensor]
    ) -> Replay | None:
        """Of a launch over `tensors` and what the backend keeps where it is. None where it can't be repeated: it took a
        tensor made in the call, or two of the tensors start at one address.
        """
        given = [tensor for tensor in tensors if tensor is not None]
        places = {tensor.data_ptr(): place for place, tensor in enumerate(tensors) if tensor is not None}
        stays = {tensor.data_ptr() for tensor in kept}
        arguments = list(started.arguments.values())
        slots: list[tuple[int, int]] = []
        outputs: list[int] = []
        for index, value in enumerate(arguments):
            if not isinstance(value, torch.Tensor):
                continue
            address = value.data_ptr()
            # of the call's own tensors none is kept
            if address == output.data_ptr():
                outputs.append(index)
                arguments[index] = None
            elif address in places:
                slots.append((index, places[address]))
                arguments[index] = None
            elif address in stays:
                arguments[index] = address if output.is_cuda else value
            else:
                return None
        if len(places) != len(given) or len(outputs) != 1:
            return None
        return cls(started.start, arguments, slots, outputs[0], kept)

    def __call__(self, tensors: Sequence[Any], output: Tensor) -> None:
        """Launches over `tensors`, in the order of the first call: addresses on a GPU, else tensors."""
        arguments = self._arguments.copy()
        for index, place in self._slots:
            arguments[index] = tensors[place]
        arguments[self._output] = output.data_ptr() if output.is_cuda else output
        self._start(arguments)
