"""What this GPU reaches here and now, to put other figures beside: a large copy's bandwidth, a large product's rate."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from ..cases import Case, Context
from ..device import device, median_seconds

COPIED, SIDE = 2 << 30, 8192


def cases(context: Context) -> Iterator[Case]:
    yield Case("copy", copy)
    for dtype in ("bfloat16", "float16"):
        yield Case(f"product {dtype}", functools.partial(product, dtype))


def copy() -> dict[str, Any]:
    import torch

    gpu = device()
    source = torch.ones(min(COPIED, (gpu.largest or COPIED) << 10), dtype=torch.uint8, device=gpu.where)
    target = torch.empty_like(source)
    seconds, rounds = median_seconds(lambda: target.copy_(source), budget=1.0)
    return {"bytes_a_second": 2 * source.numel() / seconds, "rounds": rounds, "clocks": gpu.clocks()}


def product(dtype: str) -> dict[str, Any]:
    import torch

    gpu = device()
    side = min(SIDE, gpu.largest or SIDE)
    a, b = (torch.randn(side, side, device=gpu.where).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    seconds, rounds = median_seconds(lambda: torch.mm(a, b, out=out), budget=1.0)
    return {"flops": 2 * side**3 / seconds, "rounds": rounds, "clocks": gpu.clocks()}
