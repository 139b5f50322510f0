"""How a sum is shared among programs where there are too few output tiles to fill a device, and where its parts lie.

A device's parts and counts are allocated once for each stream and kept: a call on the decode path allocates nothing but
its output. A launch that a CUDA graph captures gets its own, since the graph may be replayed beside any other work: the
parts from the graph's memory, the counts as `graph_counts` says.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from .graph_counts import graph_counts, reserve_graph_counts
from .memory import is_captured, kept_memory
from .prepared import forgotten_with_calls

Tensor = torch.Tensor

# the multiprocessors of a GPU that isn't there
_MULTIPROCESSORS = 16
# programs that a multiprocessor should have, of tiles whose parts are small beside W; tiles in elements
EACH, SMALL_TILE = 2, 32 * 128
# by how much the fullest multiprocessor may work longer for it: with small tiles it waits for memory
SMALL_SLACK, SLACK = 1 / 6, 1 / 16
# whose parts are kept
LARGEST_TILE = 128 * 128

# parts and counts by device and stream; a launch that failed may have left counts, and makes them forgotten
_kept: dict[tuple[torch.device, int], dict[str, Tensor]] = forgotten_with_calls()


def split_in(device: torch.device, *, range_: int, turn: int, tiles: int, size: int, span: int = 1) -> dict[str, Any]:
    """`share`, `parts`, `arrivals` for a sum over `range_` in turns, `tiles` output tiles of `size` elements each.

    A split fills the device once; `parts` and `arrivals` are None without one. `span`: see `share_of`.
    """
    share = share_of(multiprocessors(device), range_=range_, turn=turn, tiles=tiles, size=size, span=span)
    if share >= range_:
        return {"share": share, "parts": None, "arrivals": None}
    if is_captured(device):
        parts = torch.empty(-(-range_ // share) * tiles * size, dtype=torch.float32, device=device)
        return {"share": share, "parts": parts, "arrivals": graph_counts(device, tiles)}
    return {"share": share, **_memory(device)}


@functools.lru_cache(maxsize=1024)
def share_of(multiprocessors: int, *, range_: int, turn: int, tiles: int, size: int, span: int = 1) -> int:
    """How much of `range_`, in whole turns, each program sums where so many multiprocessors are to be filled.

    That of which the fullest multiprocessor has least to sum. Programs with less than a `span` each read sectors that
    others read too: at least a span, and whole halves of it, where that makes the fullest work little longer.
    """
    turns = max(1, -(-range_ // turn))
    most = min(turns, multiprocessors * (EACH if size <= SMALL_TILE else 1) // tiles)
    if most < 2 or size > LARGEST_TILE:
        return turns * turn
    longest: dict[int, int] = {}
    for split in range(1, most + 1):
        share = -(-turns // split) * turn
        for step in (turn, max(turn, span // 2), max(turn, span)):
            rounded = -(-share // step) * step
            programs = tiles * -(-range_ // rounded)
            longest[rounded] = -(-programs // multiprocessors) * rounded
    slack = SMALL_SLACK if size <= SMALL_TILE else SLACK
    good = [share for share, work in longest.items() if work <= (1 + slack) * min(longest.values())]
    # then as many programs as there may be, to hide one another's latency; below a span as few as fill the device
    return max(good, key=lambda share: (share >= span, 2 * share % span == 0, -share if share >= span else share))


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Of a GPU; of the one that is simulated on a CPU a small number, so that little work is split too."""
    if device.type == "cpu":
        return _MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def _memory(device: torch.device) -> dict[str, Tensor]:
    if device.type == "cpu":
        return kept_memory(device, lambda: _allocated(device))
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    memory = _kept.get(key)
    if memory is None:
        memory = _kept[key] = kept_memory(device, lambda: _allocated(device))
    reserve_graph_counts(device)
    return memory


def _allocated(device: torch.device) -> dict[str, Tensor]:
    programs = multiprocessors(device)
    return {
        "parts": torch.empty(
            max(EACH * programs * SMALL_TILE, programs * LARGEST_TILE), dtype=torch.float32, device=device
        ),
        "arrivals": torch.zeros(EACH * programs, dtype=torch.int32, device=device),
    }


def stand_in_for(programs: int) -> None:
    """Splits over CPU tensors as a GPU of so many multiprocessors would: for what is compiled in its stead."""
    global _MULTIPROCESSORS
    _MULTIPROCESSORS = programs
    multiprocessors.cache_clear()
