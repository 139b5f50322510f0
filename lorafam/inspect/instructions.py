"""Instructions for each weight that a kernel decodes, read from its code: nothing is told by the kernel itself.

A decoder on NVIDIA's machines looks levels up in a table in shared memory, one dot product of bytes (IDP.4A) a look-up:
a byte's two weights in a table of 256 rows, one nibble's in a table of 16. In a loop that decodes,

    instructions a weight = instructions of a turn · 32 · warps / weights of the program's tile that a turn covers

A turn of the source's loop covers a tile [BLOCK_N, BLOCK_K]; how many weights the threads decode in it is counted in
the PTX, and what is above one for each weight of the tile is redundant: warps that decode one another's weights. The
machine code's loop is as many turns as it has look-ups for. Where several loops decode, the worst is told. What the
loop around it does for every SPAN of blocks (`kernels/tiles/scale_table`: scales are decoded there, the pipeline filled
and emptied) is added, over BLOCK_N · SPAN · BLOCK_SIZE weights. A kernel that decodes without a loop is counted whole,
over the BLOCKS · BLOCK_SIZE weights of a program.

All counts are of instructions that are issued, whether their predicate lets a lane take part or not, and code that
waits counts once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .control_flow import Loop, Program, loops, nests, reachable, read_ptx, read_sass

_LANES = 32
_LOOK_UP, _PTX_LOOK_UP = "IDP.4A", "dp4a"
_TABLE = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b32\s+levels\[(\d+)\]")
_SHARED = ("LDS", "STS", "LDSM", "STSM", "LDGSTS", "ATOMS")
# pipes that take a warp's instruction in two cycles, 64 lanes a clock of a multiprocessor: the CUDA programming guide's
# table of arithmetic throughput; which pipe: https://forums.developer.nvidia.com/t/302018/7 and /t/108729/4
_ALU = (
    *("IADD", "IADD3", "VIADD", "VIADDMNMX", "VIADD3", "IABS", "IMNMX", "VIMNMX", "VIMNMX3", "ISETP", "SEL", "SGXT"),
    *("LOP", "LOP3", "PLOP3", "SHF", "SHL", "SHR", "LEA", "PRMT", "MOV", "BMSK", "VABSDIFF", "VABSDIFF4"),
    *("FMNMX", "FMNMX3", "FSEL", "FSETP", "F2FP", "I2FP", "F2IP", "P2R", "R2P"),
)
_MULTIPLY = ("IMAD", "IMUL", "IDP")
_FP32 = ("FADD", "FMUL", "FFMA", "HFMA2", "HADD2", "HMUL2")


class PerWeight(NamedTuple):
    """Lane-instructions a weight: all, those beside the tensor cores' own, the integer and logic pipe's, the multiply
    pipe's (half rate too: integer products and dot products; on sm_80 fp32 arithmetic as well), those that read or
    write shared memory. `around`: those of all that the loop around the one that decodes adds. `redundancy`: how many
    times a weight is decoded. `weights`: of a turn, or of the program.
    """

    total: float
    beside_tensor_cores: float
    alu: float
    multiply: float
    shared: float
    around: float
    redundancy: float
    weights: int
    in_a_loop: bool

    @property
    def half_rate(self) -> float:
        """Of the fuller of the two pipes of half rate."""
        return max(self.alu, self.multiply)


def per_weight(listing: str, ptx: str, config: Mapping[str, Any], architecture: str) -> PerWeight | None:
    """Of a kernel's SASS and PTX; `config` has its block sizes and `num_warps`. None where nothing is looked up.

    Raises ValueError where look-ups and tile don't fit each other.
    """
    program = read_sass(listing)
    if not any(instruction.opcode.startswith(_LOOK_UP) for instruction in program.code):
        return None
    threads = _LANES * config["num_warps"]
    each = threads * _weights_of_a_look_up(ptx)
    if "BLOCKS" in config:
        weights = config["BLOCKS"] * config["BLOCK_SIZE"]
        count = reachable(program)
        return _of([(count, weights)], threads, _look_ups(count) * each / weights, architecture, in_a_loop=False)
    tile = config["BLOCK_N"] * config["BLOCK_K"]
    redundancy = _redundancy(read_ptx(ptx), each, tile)
    per_loop = []
    for loop, around in nests(program, _LOOK_UP):
        counts = [(loop, _covered(loop, each, tile, redundancy))]
        if config.get("PACKED") and "SPAN" in config:
            counts.append((around, config["BLOCK_N"] * config["SPAN"] * config["BLOCK_SIZE"]))
        per_loop.append(_of(counts, threads, redundancy, architecture, in_a_loop=True))
    if not per_loop:
        raise ValueError("the machine code looks levels up, but not in a loop")
    return max(per_loop, key=lambda one: one.total)


def global_accesses(listing: str) -> dict[str, int]:
    """The instructions that access global memory, by opcode, of what is reachable."""
    count = reachable(read_sass(listing))
    return {opcode: n for opcode, n in count.items() if opcode.startswith(("LDG", "STG", "ATOMG", "REDG", "RED"))}


def _weights_of_a_look_up(ptx: str) -> int:
    """1 from a table of 16 rows (a word for each lane), 2 from one of 256."""
    table = _TABLE.search(ptx)
    rows = int(table[1]) // _LANES if table else 0
    if rows not in (16, 256):
        raise ValueError(f"look-ups in a table of 16 or 256 rows expected, got {rows}")
    return {16: 1, 256: 2}[rows]


def _redundancy(source: Program, each: int, tile: int) -> float:
    """Weights that all threads decode in a turn of the source's loop, over those of its tile."""
    turns = {_look_ups(count) * each / tile for count in loops(source, _PTX_LOOK_UP)}
    if len(turns) != 1:
        raise ValueError(f"one loop that decodes expected in the PTX, or several alike; times each decodes: {turns}")
    redundancy = turns.pop()
    if redundancy < 1:
        raise ValueError(f"a turn decodes {redundancy} of its tile of {tile} weights")
    return redundancy


def _covered(count: Loop, each: int, tile: int, redundancy: float) -> int:
    """Weights of the tile that a turn of the machine code's loop covers."""
    turns = _look_ups(count) * each / (redundancy * tile)
    if turns < 1 or not math.isclose(turns, round(turns)):
        raise ValueError(
            f"a turn with {_look_ups(count)} look-ups is {turns} turns of the source, a whole number expected"
        )
    return round(turns) * tile


def _of(
    counts: list[tuple[Loop, int]], threads: int, redundancy: float, architecture: str, in_a_loop: bool
) -> PerWeight:
    """`counts`: instructions, each with how many weights they are for; the loop that decodes first."""

    def share(are: Callable[[str], bool], counts: list[tuple[Loop, int]] = counts) -> float:
        return sum(
            sum(n for opcode, n in count.items() if are(opcode)) * threads / weights for count, weights in counts
        )

    def of(names: tuple[str, ...]) -> float:
        return share(lambda opcode: opcode.partition(".")[0] in names)

    total = share(lambda _: True)
    return PerWeight(
        total=total,
        beside_tensor_cores=total - share(is_tensor_core),
        alu=of(_ALU),
        multiply=of(_MULTIPLY + _FP32 if architecture == "sm_80" else _MULTIPLY),
        shared=of(_SHARED),
        around=share(lambda _: True, counts[1:]),
        redundancy=redundancy,
        weights=counts[0][1],
        in_a_loop=in_a_loop,
    )


def _look_ups(count: Loop) -> int:
    return sum(n for opcode, n in count.items() if opcode.startswith((_LOOK_UP, _PTX_LOOK_UP)))


def is_tensor_core(opcode: str) -> bool:
    """HMMA, HGMMA, UTCHMMA, …; HFMA2.MMA is a multiplication of two pairs."""
    return opcode.partition(".")[0].endswith("MMA")
