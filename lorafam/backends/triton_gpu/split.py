"""How a sum is shared among programs where there are too few output tiles to fill a device, and where its parts lie.

A device's parts and counts are allocated once for each stream and kept: a call on the decode path allocates nothing but
its output, and a captured CUDA graph finds them where they were.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

Tensor = torch.Tensor

# the multiprocessors of a GPU that isn't there
_MULTIPROCESSORS = 16
# programs that a multiprocessor should have, of tiles whose parts are small beside W; tiles in elements
EACH, SMALL_TILE = 2, 32 * 128
# whose parts are kept
LARGEST_TILE = 128 * 128

# parts and counts by device and stream
_kept: dict[tuple[torch.device, int], dict[str, Tensor]] = {}


def split_in(device: torch.device, *, range_: int, turn: int, tiles: int, size: int, span: int = 1) -> dict[str, Any]:
    """`share`, `parts`, `arrivals` for a sum over `range_` in turns, `tiles` output tiles of `size` elements each.

    A split fills the device once; `parts` and `arrivals` are None without one. `span`: see `share_of`.
    """
    share = share_of(multiprocessors(device), range_=range_, turn=turn, tiles=tiles, size=size, span=span)
    if share >= range_:
        return {"share": share, "parts": None, "arrivals": None}
    return {"share": share, **_memory(device)}


def share_of(multiprocessors: int, *, range_: int, turn: int, tiles: int, size: int, span: int = 1) -> int:
    """How much of `range_`, in whole turns, each program sums where so many multiprocessors are to be filled.

    Programs with less than a `span` each read sectors that others read too: then there are no more of them than give
    every multiprocessor one. Whole or half spans where that makes none of them work a sixteenth longer.
    """
    turns = max(1, -(-range_ // turn))
    split = multiprocessors * (EACH if size <= SMALL_TILE else 1) // tiles
    split = min(turns, split, max(range_ // span, multiprocessors // tiles))
    if split < 2 or size > LARGEST_TILE:
        return turns * turn

    def longest(share: int) -> int:
        """What the fullest multiprocessor sums."""
        return -(-tiles * -(-range_ // share) // multiprocessors) * share

    share = -(-turns // split) * turn
    for step in (span, span // 2):
        rounded = -(-share // max(step, turn)) * max(step, turn)
        if 16 * longest(rounded) <= 17 * longest(share):
            return rounded
    return share


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; of the one that is simulated on a CPU a small number, so that little work is split too."""
    if device.type == "cpu":
        return _MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _memory(device: torch.device) -> dict[str, Tensor]:
    if device.type == "cpu":
        return _allocated(device)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    memory = _kept.get(key)
    if memory is None:
        memory = _allocated(device)
        # what is allocated while a graph is captured belongs to the graph
        if not torch.cuda.is_current_stream_capturing():
            _kept[key] = memory
    return memory


def _allocated(device: torch.device) -> dict[str, Tensor]:
    programs = multiprocessors(device)
    return {
        "parts": torch.empty(max(EACH * programs * SMALL_TILE, programs * LARGEST_TILE), device=device),
        "arrivals": torch.zeros(EACH * programs, dtype=torch.int32, device=device),
    }
