"""(kernel, architecture, dtype, tokens, N, K, rank, how W is read) → LaunchConfig, from `tuned/*.json`.

A file holds rows by kernel, first match first (`launch_rows`): {"tokens", "N", "K", "rank": each at most, "dtypes",
"weights", "architectures": each one of these, "triton": "<3.8" or "3.7", "blocks": {...}, "num_warps": w, "num_stages":
s}; what a row leaves out matches anything, and so does a size of 0, which is not known. Which file: nvidia, amd or
interpreter.
Rows that a user measured go before them (`prefer`). W is read dense, packed (four codes at a time) or by elements (one
code at a time).

N and K are W's; a kernel over one side alone calls that side K.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .launch_config import INTERPRETER, MFMA, MMA, TCGEN05, WGMMA, LaunchConfig
from .launch_rows import LISTS, SIZES, TRITON, Row, check_rows, of_triton

NVIDIA, AMD = "nvidia", "amd"
DENSE, PACKED, ELEMENTS = "dense", "packed", "elements"

_FOLDER = Path(__file__).parent / "tuned"


class Question(NamedTuple):
    """What a launch asks the table."""

    kernel: str
    architecture: str
    dtype: str
    tokens: int
    weight: str | None
    N: int
    K: int
    rank: int


# architecture → rows put before the shipped ones; who is told of questions
_preferred: dict[str, dict[str, list[Row]]] = {}
_observers: list[list[Question]] = []


def machine_of(architecture: str) -> str:
    """The kind of machine of an architecture: sm_80 … are NVIDIA's, gfx942 … AMD's."""
    if architecture == INTERPRETER:
        return INTERPRETER
    return NVIDIA if architecture.startswith("sm_") else AMD


def target_of(architecture: str) -> str:
    """The tensor cores of an architecture."""
    if architecture == INTERPRETER:
        return INTERPRETER
    if machine_of(architecture) == AMD:
        return MFMA
    return {"sm_90": WGMMA, "sm_100": TCGEN05, "sm_103": TCGEN05}.get(architecture, MMA)


@functools.cache
def rows(machine: str) -> dict[str, list[Row]]:
    """The shipped rows of every kernel for a kind of machine, under the Triton that runs."""
    shipped = json.loads((_FOLDER / f"{machine}.json").read_text(encoding="utf-8"))
    return {kernel: of_triton(entries, TRITON) for kernel, entries in shipped.items()}


def prefer(architecture: str, preferred: dict[str, list[Row]]) -> None:
    """Puts rows, by kernel, before the shipped ones for `architecture`, in place of what was put there before.

    Raises ValueError for a row that is malformed; nothing has changed then.
    """
    check_rows(preferred, rows(machine_of(architecture)))
    _preferred[architecture] = preferred
    launch_config.cache_clear()


def preferred(architecture: str) -> dict[str, list[Row]]:
    """The rows that go before the shipped ones for `architecture`."""
    return _preferred.get(architecture, {})


@contextlib.contextmanager
def observed() -> Iterator[list[Question]]:
    """The questions asked meanwhile, each once."""
    questions: list[Question] = []
    launch_config.cache_clear()
    _observers.append(questions)
    try:
        yield questions
    finally:
        _observers.remove(questions)


@functools.cache
def launch_config(
    kernel: str,
    architecture: str,
    dtype: str,
    tokens: int = 0,
    weight: str | None = None,
    *,
    N: int = 0,
    K: int = 0,
    rank: int = 0,
) -> LaunchConfig:
    """The first row that fits. `dtype` is the name of the wide operand's ("bfloat16", "float16", "float32"), `weight`
    how W is read; sizes of 0 aren't known. Raises LookupError where no row fits.
    """
    question = Question(kernel, architecture, dtype, tokens, weight, N, K, rank)
    for observer in _observers:
        observer.append(question)
    for several in (preferred(architecture).get(kernel, []), rows(machine_of(architecture))[kernel]):
        row = next((row for row in several if _fits(row, question)), {"shipped": True})
        if "shipped" not in row:
            return config_of(row, architecture)
    raise LookupError(f"no configuration of {kernel} for {architecture}, {dtype}, {tokens} tokens, {weight} weight")


def config_of(row: Row, architecture: str) -> LaunchConfig:
    """The configuration that a row gives for an architecture."""
    blocks = tuple(sorted(row["blocks"].items()))
    return LaunchConfig(blocks, row.get("num_warps", 4), row.get("num_stages", 1), target_of(architecture))


def _fits(row: Row, question: Question) -> bool:
    small = all(getattr(question, size) <= row[size] for size in SIZES if size in row)
    return small and all(getattr(question, name) in row[several] for name, several in LISTS.items() if several in row)
