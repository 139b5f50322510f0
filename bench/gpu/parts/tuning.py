"""`lorafam tune` at one shape and number of tokens: the table it leaves in this run's folder is what "tuned" is of.

Candidates are compiled many at a time beforehand, so that the GPU isn't kept waiting for a compiler.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from lorafam.backends.processes import die_with_parent
from lorafam.backends.told import told

from ..cases import Case, Context
from ..device import device

# seconds for a point, at most, and for compiling everything beforehand
POINT, COMPILING = 60.0, 400.0


def cases(context: Context, shape: Sequence[int], tokens: int) -> Iterator[Case]:
    from lorafam.tune.points import points

    use_folder(context.folder)
    largest = device().largest
    n, k = (min(size, largest or size) for size in shape)
    several = points(shapes=[(n, k)], tokens=[min(tokens, largest or tokens)])
    yield Case("candidates compiled", functools.partial(compiled, several), expects=30, limit=COMPILING, resumes=True)
    for point in several:
        yield Case(str(point), functools.partial(tuned, point), expects=15, limit=4 * POINT)


def use_folder(folder: Path) -> None:
    """Where tables and self-checks are kept from here on: the run's own, with the check that was made already."""
    own = folder / "user-tuned"
    own.mkdir(parents=True, exist_ok=True)
    for checked in (folder / "user-untuned").glob("checked-*.json"):
        shutil.copy(checked, own)
    os.environ["LORAFAM_CACHE_DIR"] = str(own)


def compiled(several: Sequence[Any], workers: int | None = None) -> dict[str, Any]:
    """Compiles the points' candidates, side by side, into Triton's cache: how many, and what couldn't be."""
    architecture, multiprocessors = device().architecture, device().card()["multiprocessors"]
    jobs = [(architecture, multiprocessors, tuple(point), row) for point in several for row in candidates(point)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count() or 1, context, die_with_parent) as pool:
        errors = [future.result() for future in [pool.submit(compile_one, *job) for job in jobs]]
    # larger than the machine takes, say: the search leaves them out too
    return {"candidates": len(jobs), "refused": sum(map(bool, errors))}


def candidates(point: Any) -> list[dict[str, Any]]:
    """The shipped configurations, and what lies one step from the one in use; none where a path is chosen."""
    from lorafam.kernels.launch_table import launch_config, observed

    from lorafam.backends.triton_gpu.launch import compiled_only
    from lorafam.tune.candidates import as_dict, neighbours, shipped_configs
    from lorafam.tune.points import PATHS

    if point.op in PATHS:
        return []
    work = _work_on_cpu(point, device().architecture)
    with observed() as questions, compiled_only(device().architecture):
        _call(work)
    asked = [question for question in questions if question.kernel == work.kernel]
    if not asked:
        return []
    kernel, architecture, dtype, tokens, weight, n, k, rank = asked[0]
    shipped = launch_config(kernel, architecture, dtype, tokens, weight, N=n, K=k, rank=rank)
    configs = [shipped, *shipped_configs(asked[0]), *neighbours(shipped)]
    return [as_dict(config) for config in dict.fromkeys(configs)]


def compile_one(architecture: str, multiprocessors: int, point: tuple[Any, ...], row: dict[str, Any]) -> str:
    """Compiles what the point launches with one configuration; why it can't, or ""."""
    from lorafam.kernels.launch_table import prefer

    from lorafam.backends.triton_gpu import split
    from lorafam.backends.triton_gpu.launch import compiled_only
    from lorafam.tune.points import Point

    # how K is split decides what is compiled
    split.stand_in_for(multiprocessors)
    work = _work_on_cpu(Point(*point), architecture)
    try:
        prefer(architecture, {work.kernel: [row]})
        with compiled_only(architecture):
            _call(work)
    except Exception as error:
        return told(error)
    return ""


@functools.lru_cache(maxsize=1)
def _work_on_cpu(point: Any, architecture: str) -> Any:
    import torch
    from lorafam.kernels.paths import prefer_paths

    from lorafam.tune.workload import workload

    work = workload(point, torch.device("cpu"))
    prefer_paths(architecture, work.paths)
    return work


def _call(work: Any) -> None:
    from lorafam.backends import triton_gpu

    getattr(triton_gpu, work.op)(*work.arguments)


def tuned(point: Any) -> dict[str, Any]:
    """The record of the point, as `lorafam tune` keeps it. Raises RuntimeError where nothing right was measured."""
    from lorafam.backends.triton_gpu.user_table import read, table_file
    from lorafam.tune.session import tune
    from lorafam.tune.table import is_won

    gpu = device().tuned()
    path = table_file(gpu.model)
    tune([point], gpu, path, Silent(), seconds=POINT)
    table = read(path, gpu.architecture)
    assert table is not None
    record = next(one for one in table["points"] if one["point"] == point._asdict())
    if record.get("best") is None:
        raise RuntimeError(record.get("failure") or "nothing was measured")
    return {**record, "point": str(point), "won": is_won(record)}


class Silent:
    """The session's reporter: what came of a point is in its record."""

    def note(self, text: str) -> None:
        print(text)

    def begin(self, done: int, total: int) -> None:
        return

    def starts(self, point: Any) -> None:
        return

    def ends(self, point: Any, found: Any) -> None:
        return

    def end(self) -> None:
        return
