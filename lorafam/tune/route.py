"""How a product over a 4-bit weight runs fastest: fused, or staged by cuBLAS or by `dense_linear`, side by side."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

from ..backends import eager
from ..backends.comparison import expected
from ..kernels.paths import CUBLAS, FUSED, STAGED, TRITON, path_of, prefer_paths
from .check import BROKEN, RIGHT, WRONG, failure
from .gpu import Gpu
from .points import Point
from .search import MARGIN, VERDICT_REPEATS
from .table import PATHS, Record
from .workload import Workload

ROUTES = (
    {"path": FUSED},
    {"path": STAGED, "product": CUBLAS},
    {"path": STAGED, "product": TRITON},
)


def fastest_route(point: Point, work: Workload, gpu: Gpu, avoid: Collection[Any] = ()) -> Record:
    """The record of a point, with the launch configurations that are in effect; what is in `avoid` isn't tried.

    Leaves the shipped paths in effect. Raises GpuLostError where the GPU doesn't survive a route.
    """
    arch = gpu.architecture
    prefer_paths(arch, {})
    route = path_of(work.op, arch, point.tokens, point.N, point.K)
    shipped = ROUTES.index({name: value for name, value in route._asdict().items() if value})
    choices = [functools.partial(prefer_paths, arch, {work.op: [dict(row)]}) for row in ROUTES]
    try:
        wanted = expected(work.op, getattr(eager, work.op), work.arguments)
        results = []
        for row, choose in zip(ROUTES, choices, strict=True):
            if row in avoid:
                results.append((BROKEN, "it took the GPU down"))
                continue
            choose()
            results.append(failure(gpu, work.op, work.arguments, wanted, dict(row)))
        right = [index for index, (how, _) in enumerate(results) if how == RIGHT]
        call = functools.partial(getattr(gpu.ops, work.op), *work.arguments)
        times = gpu.timer(call, [choices[index] for index in right], VERDICT_REPEATS) if right else []
    finally:
        prefer_paths(arch, {})
    seconds = dict(zip(right, times, strict=True))
    best = min(seconds, key=lambda index: seconds[index], default=None)
    if best is not None and shipped in seconds and not seconds[best] < (1 - MARGIN) * seconds[shipped]:
        best = shipped

    def timed(index: int | None) -> Record | None:
        return {**ROUTES[index], "seconds": seconds[index]} if index in seconds and index is not None else None

    return {
        "point": point._asdict(),
        "table": PATHS,
        "finished": True,
        "kernel": work.op,
        "conditions": {"tokens": point.tokens, "N": point.N, "K": point.K},
        "shipped": timed(shipped),
        **({"failure": results[shipped][1]} if results[shipped][1] else {}),
        "best": timed(best),
        "measured": len(right),
        "wrong": sum(how == WRONG for how, _ in results),
        "broken": sum(how == BROKEN for how, _ in results),
    }
