"""The time that a kernel's resources allow on a card: modelled, not measured.

    time = max(bytes / bandwidth, instructions / issue rate, half-rate instructions / half rate,
               wavefronts of shared memory / 1 a clock, tensor-core operations / peak)

A multiprocessor issues 128 lanes' instructions a clock, the pipes of half rate take 64. Instructions a weight are those
of the loop that decodes; what comes before and after it, and latency, are not in the model. All but bytes / bandwidth
is multiplied with how much fuller than the average the fullest multiprocessor is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lorafam.backends.triton_gpu.lora_linear import HALF_A_SECTOR
from lorafam.backends.triton_gpu.split import share_of

from .cards import Card
from .code import half_rate

ISSUED, HALF_RATE = 128, 64
# NF4 with blocks of 64 and double quantisation: codes, a byte of absmax a block, fp32 for 256 blocks
BLOCK_SIZE = 64
BYTES_A_WEIGHT = 0.5 + 1 / BLOCK_SIZE + 4 / (BLOCK_SIZE * 256)
BF16 = 2


class Work(NamedTuple):
    """`weights` decoded and `flops` on tensor cores by all programs; `bytes` of operands; `parts`: bytes of a split
    sum's parts, written and read once.
    """

    bytes: float
    weights: float
    flops: float
    programs: int
    parts: float = 0.0


class Modelled(NamedTuple):
    """`seconds` with parts staying in L2, the largest of `terms`; `with_parts` if they went to memory and back; `bytes`
    of memory, and `wavefronts` of shared memory by all programs, None where unknown.
    """

    seconds: float
    bound_by: str
    with_parts: float
    terms: Mapping[str, float]
    bytes: float
    wavefronts: float | None


def of_product(card: Card, config: Mapping[str, Any], M: int, N: int, K: int) -> Work:
    """lora_linear with a 4-bit W, split as on a card of so many multiprocessors: 4 S M N bytes of parts each way."""
    block_m, block_n = config["BLOCK_M"], config["BLOCK_N"]
    tiles_m, tiles_n = -(-M // block_m), -(-N // block_n)
    tiles = tiles_m * tiles_n
    share = share_of(
        card.multiprocessors,
        range_=K,
        turn=config["BLOCK_K"],
        tiles=tiles,
        size=block_m * block_n,
        span=HALF_A_SECTOR * BLOCK_SIZE,
    )
    split = -(-K // share)
    padded = tiles_n * block_n * K
    return Work(
        bytes=tiles_m * BYTES_A_WEIGHT * N * K + BF16 * (M * K + M * N),
        weights=tiles_m * padded,
        flops=2 * tiles_m * block_m * padded,
        programs=tiles * split,
        parts=2 * 4 * split * M * N if split > 1 else 0,
    )


def of_dequantize(config: Mapping[str, Any], N: int, K: int) -> Work:
    """nf4_dequantize to bf16."""
    programs = -(-N * K // (config["BLOCKS"] * config["BLOCK_SIZE"]))
    return Work((BYTES_A_WEIGHT + BF16) * N * K, N * K, 0, programs)


def modelled(card: Card, work: Work, per_weight: Mapping[str, Any], wavefronts: float | None) -> Modelled:
    """`per_weight` from the card's machine code; `wavefronts` of shared memory a weight, None where unknown."""
    clocks = card.multiprocessors * card.clock
    fullest = -(-work.programs // card.multiprocessors) * card.multiprocessors / work.programs
    seconds = {
        "memory": work.bytes / card.bandwidth,
        "issue": fullest * per_weight["total"] * work.weights / (ISSUED * clocks),
        "half rate": fullest * half_rate(per_weight) * work.weights / (HALF_RATE * clocks),
        "tensor cores": fullest * work.flops / card.tensor_flops,
    }
    if wavefronts is not None:
        seconds["shared memory"] = fullest * wavefronts * work.weights / clocks
    bound_by = max(seconds, key=lambda name: seconds[name])
    with_parts = max(seconds[bound_by], (work.bytes + work.parts) / card.bandwidth)
    all_wavefronts = None if wavefronts is None else wavefronts * work.weights
    return Modelled(seconds[bound_by], bound_by, with_parts, seconds, work.bytes, all_wavefronts)
