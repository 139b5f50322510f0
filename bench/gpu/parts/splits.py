"""Sums that programs share, launched many times on two streams by a thread each: the same bits every time.

The order of memory between programs is the GPU's own; nothing that runs the code elsewhere can show it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..cases import Case, Context
from ..device import device
from .counters import call_of

# of so few tiles that every modelled card splits them
SHAPE = (4096, 4096)
CALLS = (("lora_linear", 1), ("lora_linear", 16), ("lora_linear_grad", 16), ("lora_project", 16))
STREAMS, LAUNCHES = 2, 1000


def cases(context: Context) -> Iterator[Case]:
    for op, tokens in CALLS:
        yield Case(f"{op}, {tokens} tokens", functools.partial(same_bits, op, tokens))


def same_bits(op: str, tokens: int) -> dict[str, Any]:
    """Raises AssertionError with how many launches gave other bits than the first."""
    gpu = device()
    call = call_of(op, tokens, SHAPE)
    first = call()
    gpu.synchronize()
    launches = (10 if gpu.largest else LAUNCHES) // STREAMS

    def differing(_: int) -> int:
        with gpu.stream():
            # summed on the GPU, so that launches follow one another closely
            return int(sum((call() != first).any().int() for _ in range(launches)))

    with ThreadPoolExecutor(STREAMS) as pool:
        found = sum(pool.map(differing, range(STREAMS)))
    if found:
        raise AssertionError(f"{found} of {STREAMS * launches} launches gave other bits than the first")
    return {"launches": STREAMS * launches, "streams": STREAMS}
