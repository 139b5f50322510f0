"""What a launch that ptxsim runs moves, argument by argument, and which instructions it executes.

Memory is moved in sectors of 32 bytes. A sector is counted at three places:

    requested    by every warp's instruction that touches it: the traffic of L1
    fetched      once for each program: what L2 gives where a multiprocessor's L1 keeps it between a program's turns
    distinct     once: what memory gives where L2 keeps it
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..backends.triton_gpu.launch import INTERPRETING, SIMULATED_ARCHITECTURE, Launch, recorded, simulator

SECTOR_BYTES = 32
_SECTOR_BITS = 5
# of a sector's number, below the number of a warp or program: ptxsim's windows of 2³¹ sectors, for up to 255 buffers
_ADDRESS_BITS = 39


class Moved(NamedTuple):
    """Sectors of one argument, in one direction."""

    requested: int
    fetched: int
    distinct: int


class Shared(NamedTuple):
    """Shared memory's wavefronts of one instruction, and those of them that bank conflicts added."""

    opcode: str
    source: str
    wavefronts: int
    conflicts: int


class Traffic(NamedTuple):
    """`read` and `written` by the kernel's parameter (of tensors that share memory the first); `executed`: PTX opcode →
    how many times a warp executed it; `shared`: the instructions that access shared memory.
    """

    read: dict[str, Moved]
    written: dict[str, Moved]
    executed: Counter[str]
    shared: list[Shared]

    def of_threads(self) -> list[Shared]:
        """Without what tensor cores read themselves (wgmma), in an order that only they know."""
        return [one for one in self.shared if not one.opcode.startswith("wgmma")]

    @property
    def wavefronts(self) -> int:
        """Of the threads' own instructions."""
        return sum(one.wavefronts for one in self.of_threads())

    @property
    def conflicts(self) -> float:
        """The share of these that bank conflicts added."""
        return sum(one.conflicts for one in self.of_threads()) / max(1, self.wavefronts)


class Counted(NamedTuple):
    """A launch and what it moved."""

    launch: Launch
    traffic: Traffic


def count(architecture: str, run: Callable[[], object]) -> list[Counted]:
    """The launches that `run` makes on CPU tensors, compiled for `architecture` and run by ptxsim, in their order.

    Raises RuntimeError without ptxsim, or where this process runs kernels in Triton's interpreter.
    """
    if INTERPRETING:
        raise RuntimeError(
            "LORAFAM_BACKEND=interpret: kernels are interpreted in this process, their code can't be run"
        )
    before = os.environ.get(SIMULATED_ARCHITECTURE)
    os.environ[SIMULATED_ARCHITECTURE] = architecture
    try:
        with recorded() as launches, _counting() as traffic:
            run()
    finally:
        if before is None:
            del os.environ[SIMULATED_ARCHITECTURE]
        else:
            os.environ[SIMULATED_ARCHITECTURE] = before
    return [Counted(*pair) for pair in zip(launches, traffic, strict=True)]


@contextlib.contextmanager
def _counting() -> Iterator[list[Traffic]]:
    """Of what ptxsim runs meanwhile."""
    simulator()
    import numpy as np

    memories: Any = importlib.import_module("ptxsim.memory")
    runs: Any = importlib.import_module("ptxsim.launch")
    global_memory, buffer_bits = memories.GlobalMemory, memories.WINDOW_BITS - _SECTOR_BITS
    translate, summarise = global_memory.translate, runs.summarise
    counts: list[Traffic] = []
    # of the launch that runs: (buffer, whether written) → sectors requested, (program, sector) of each access
    requested: Counter[tuple[int, bool]] = Counter()
    touched: dict[tuple[int, bool], list[Any]] = {}

    def noting(
        self: Any, addr: Any, idx: Any, size: int, write: bool, counters: Any, err: Any, cta: Any, *rest: Any
    ) -> Any:
        sectors = addr[idx].astype(np.int64) >> _SECTOR_BITS
        # an access is at most 16 bytes, aligned: of one sector
        for buffer in np.unique(sectors >> buffer_bits):
            own = sectors >> buffer_bits == buffer
            key = (int(buffer) - 1, bool(write))
            requested[key] += len(np.unique(idx[own] // 32 << _ADDRESS_BITS | sectors[own]))
            program = cta[idx[own]].astype(np.int64)
            touched.setdefault(key, []).append(np.unique(program << _ADDRESS_BITS | sectors[own]))
        return translate(self, addr, idx, size, write, counters, err, cta, *rest)

    def summing(kernel: Any, stats: Any, memory: Any, *rest: Any) -> Any:
        sides: tuple[dict[str, Moved], dict[str, Moved]] = ({}, {})
        for (buffer, write), pairs in touched.items():
            unique = np.unique(np.concatenate(pairs))
            distinct = len(np.unique(unique & ((1 << _ADDRESS_BITS) - 1)))
            sides[write][memory.names[buffer]] = Moved(requested[buffer, write], len(unique), distinct)
        requested.clear()
        touched.clear()
        executed: Counter[str] = Counter()
        shared = []
        for instruction, warps, own in zip(kernel.instrs, stats["warps"], stats["shared"], strict=True):
            executed[instruction.opcode] += int(warps)
            if wavefronts := int(own[memories.C_WAVEFRONTS]):
                conflicts = int(own[memories.C_EXTRA])
                shared.append(Shared(instruction.opcode, instruction.source or "", wavefronts, conflicts))
        counters, lines = summarise(kernel, stats, memory, *rest)
        counts.append(Traffic(*sides, executed, shared))
        return counters, lines

    global_memory.translate, runs.summarise = noting, summing
    try:
        yield counts
    finally:
        global_memory.translate, runs.summarise = translate, summarise
