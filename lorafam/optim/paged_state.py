"""Where the states of AdamW lie: one buffer for the parameters of a device, however small they are.

32 bits    exp_avg, exp_avg_sq fp32, of the parameter's shape
8 bits     exp_avg, exp_avg_sq uint8 codes of the parameter's shape; exp_avg_absmax, exp_avg_sq_absmax
           fp32 [ceil(n / 256)]
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch

from .paged_memory import PagedFile, UnifiedMemory

Tensor = torch.Tensor

BLOCK = 256
# bytes; a parameter's states begin at a multiple
_ALIGNMENT = 512


class PagedPlace(NamedTuple):
    """A parameter's states and the memory they lie in."""

    memory: PagedFile | UnifiedMemory
    tensors: dict[str, Tensor]


def layout(shape: torch.Size, bits: int) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Name → shape and dtype of a parameter's states, in the order in which they lie."""
    if bits == 32:
        return dict.fromkeys(("exp_avg", "exp_avg_sq"), (shape, torch.float32))
    blocks = torch.Size([-(-shape.numel() // BLOCK)])
    return {
        "exp_avg": (shape, torch.uint8),
        "exp_avg_sq": (shape, torch.uint8),
        "exp_avg_absmax": (blocks, torch.float32),
        "exp_avg_sq_absmax": (blocks, torch.float32),
    }


def place_all(parameters: Iterable[tuple[Tensor, int]], folder: Path | None) -> dict[Tensor, PagedPlace]:
    """Takes memory for the states of (parameter, bits), one piece a device: on the CPU a file in `folder`. What lies
    there is whatever was there.
    """
    by_device: dict[torch.device, list[tuple[Tensor, int]]] = {}
    for parameter, bits in parameters:
        by_device.setdefault(parameter.device, []).append((parameter, bits))
    places: dict[Tensor, PagedPlace] = {}
    for device, members in by_device.items():
        offsets, end = [], 0
        for parameter, bits in members:
            offsets.append(end)
            end += -(-_size(parameter, bits) // _ALIGNMENT) * _ALIGNMENT
        memory: PagedFile | UnifiedMemory
        if device.type == "cpu":
            assert folder is not None
            memory = PagedFile(max(end, _ALIGNMENT), folder)
        else:
            memory = UnifiedMemory(max(end, _ALIGNMENT), device)
        for (parameter, bits), offset in zip(members, offsets, strict=True):
            places[parameter] = PagedPlace(memory, _tensors(memory, offset, parameter.shape, bits))
    return places


def _tensors(memory: PagedFile | UnifiedMemory, offset: int, shape: torch.Size, bits: int) -> dict[str, Tensor]:
    tensors = {}
    # fp32 first, so that it is aligned
    for name, (part, dtype) in sorted(layout(shape, bits).items(), key=lambda item: -item[1][1].itemsize):
        tensors[name] = memory.tensor(offset, part, dtype)
        offset += part.numel() * dtype.itemsize
    return tensors


def _size(parameter: Tensor, bits: int) -> int:
    return sum(part.numel() * dtype.itemsize for part, dtype in layout(parameter.shape, bits).values())
