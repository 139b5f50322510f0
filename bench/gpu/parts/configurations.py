"""One kernel in each of its shipped configurations, at sizes of several tiles, beside fp64."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

from ..cases import Case, Context
from ..device import device

# many tiles, and none that is whole
N, K, RANK = 1040, 1088, 16
TOKENS = (3, 130)


def cases(context: Context, kernel: str) -> Iterator[Case]:
    from lorafam.tune.points import DTYPES, STORAGES, points

    gpu, some = device(), False
    n, k = (min(size, gpu.largest or size) for size in (N, K))
    for dtype in DTYPES:
        # a product of dense operands alone has no way of reading a 4-bit W
        for point in dict.fromkeys(
            found._replace(rank=RANK)
            for tokens in (TOKENS[1:] if kernel == "dense_linear" else TOKENS)
            for found in points([kernel], [(n, k)], [tokens], RANK, dtype, STORAGES)
        ):
            for case in of_point(point):
                some = True
                yield case
    if not some:
        yield Case("configurations", functools.partial(_refused, f"nothing asks for one of {kernel}"))


def of_point(point: Any) -> Iterator[Case]:
    """A case a configuration that the table has for the point's kernel, dtype and storage."""
    from lorafam.kernels.launch_table import observed, prefer
    from lorafam.kernels.paths import prefer_paths

    from lorafam.tune.candidates import as_dict, shipped_configs
    from lorafam.tune.workload import workload

    gpu = device()
    work = workload(point, gpu.where)
    prefer(gpu.architecture, {})
    prefer_paths(gpu.architecture, work.paths)
    with observed() as questions:
        try:
            getattr(gpu.ops, work.op)(*work.arguments)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            yield Case(f"{point}: as shipped", functools.partial(_refused, why))
    asked = [question for question in questions if question.kernel == work.kernel]
    for config in shipped_configs(asked[0]) if asked else ():
        row = as_dict(config)
        blocks = ", ".join(f"{name} {size}" for name, size in row["blocks"].items())
        name = f"{point}: {blocks}, {row['num_warps']} warps, {row['num_stages']} stages"
        yield Case(name, functools.partial(right, work, row))


def _refused(why: str) -> dict[str, Any]:
    raise RuntimeError(why)


def right(work: Any, row: dict[str, Any]) -> dict[str, Any]:
    """Raises AssertionError where the configuration is wrong at either of the workload's sizes."""
    from lorafam.kernels.launch_table import prefer
    from lorafam.kernels.paths import prefer_paths

    from lorafam.backends import eager
    from lorafam.backends.comparison import compare, expected, results_of

    gpu = device()
    prefer_paths(gpu.architecture, work.paths)
    prefer(gpu.architecture, {work.kernel: [row]})
    try:
        for arguments in (work.arguments, work.odd):
            got = results_of(work.op, getattr(gpu.ops, work.op), arguments)
            gpu.synchronize()
            compare(work.op, got, expected(work.op, getattr(eager, work.op), arguments))
    finally:
        prefer(gpu.architecture, {})
        prefer_paths(gpu.architecture, {})
    return {}
