"""`make bench`, second part: ratios on this CPU to PEFT + bitsandbytes, the dense product and others' kernels; with a
dense base to eager PyTorch.

Every line has the ratio asked for, and says where it isn't reached. Each case has passed the correctness rule first.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lorafam.files import write_json

from ..case import Case, make_case
from ..gate import check
from ..run import machine
from .interleaved import medians
from .layers import Call, dense_calls, evaluation_calls, layer_calls, product_calls
from .memory import growth

PACKAGES = ("torch", "numba", "bitsandbytes", "peft", "onnxruntime")
SIZES = ((4096, 4096), (2048, 5632))
DTYPES = (torch.float32, torch.bfloat16)
TOKENS = (1, 16, 128)
# as many times faster than PEFT + bitsandbytes: forward, forward + backward, by tokens
AGAINST_PEFT: dict[str, dict[int, tuple[float, float]]] = {
    "qlora": {1: (20, 5), 16: (5, 3), 128: (1.8, 1.5)},
    "qdora": {1: (20, 8), 16: (10, 6), 128: (4, 3)},
}
IN_EVALUATION = {1: 100, 16: 20, 128: 4}
# as many times as long as the dense product at most
AGAINST_DENSE = {
    torch.float32: {"forward": {128: 1.12, 512: 1.06}, "train": {512: 1.12}},
    torch.bfloat16: {"forward": {128: 1.4, 512: 1.12}, "train": {512: 1.25}},
}
# a dense base: no slower than eager PyTorch
AGAINST_EAGER = 1.0
MEMORY = 4


class Row(NamedTuple):
    """A comparison: `ratio` is the other's over lorafam's, and at least `bar` is asked for (None: nothing is)."""

    what: str
    size: str
    dtype: str
    tokens: int
    ours: float
    other: str
    theirs: float
    bar: float | None

    @property
    def ratio(self) -> float:
        return self.theirs / self.ours


def rows(sizes: list[tuple[int, int]], dtypes: list[torch.dtype], seconds: float) -> Iterator[Row]:
    for size in sizes:
        for dtype in dtypes:
            for tokens in (*TOKENS, 512):
                case = make_case("qlora", size, tokens, dtype)
                check(case)
                yield from _qlora(case, seconds)
            for tokens in (*TOKENS, 512):
                case = make_case("lora", size, tokens, dtype)
                check(case)
                for direction in ("forward", "train"):
                    calls = layer_calls(case, direction, "eager")
                    yield from _compared(f"dense LoRA {direction}", case, calls, {"eager": AGAINST_EAGER}, seconds)
            for tokens in TOKENS:
                case = make_case("qdora", size, tokens, dtype)
                check(case)
                for direction, bar in zip(("forward", "train"), AGAINST_PEFT["qdora"][tokens], strict=True):
                    yield from _compared(
                        f"DoRA {direction}", case, layer_calls(case, direction), {"peft": bar}, seconds
                    )
                bars = {"peft": IN_EVALUATION[tokens]}
                yield from _compared("DoRA in evaluation", case, evaluation_calls(case), bars, seconds)


def _qlora(case: Case, seconds: float) -> Iterator[Row]:
    tokens = case.tokens
    if tokens in TOKENS:
        for direction, bar in zip(("forward", "train"), AGAINST_PEFT["qlora"][tokens], strict=True):
            yield from _compared(f"LoRA {direction}", case, layer_calls(case, direction), {"peft": bar}, seconds)
    for direction, bars in AGAINST_DENSE[case.dtype].items():
        if tokens in bars:
            calls = dense_calls(case, direction)
            yield from _compared(f"LoRA {direction}", case, calls, {"dense": 1 / bars[tokens]}, seconds)
    first = {"dense": 2.0, "bitsandbytes": 1.0} if tokens == 1 else {}
    yield from _compared("NF4 product", case, product_calls(case), {"onnxruntime": 1.0, **first}, seconds)


def _compared(what: str, case: Case, calls: dict[str, Call], bars: dict[str, Any], seconds: float) -> Iterator[Row]:
    found = medians(calls, seconds)
    size, dtype = f"{case.out_features} x {case.in_features}", str(case.dtype).removeprefix("torch.")
    for other, theirs in found.items():
        if other != "lorafam":
            yield Row(what, size, dtype, case.tokens, found["lorafam"], other, theirs, bars.get(other))


def memory_rows(sizes: list[tuple[int, int]]) -> Iterator[Row]:
    """MiB instead of seconds."""
    for rows_, columns in sizes:
        for tokens in (16, 128):
            ours, theirs = (growth(name, (rows_, columns), tokens) / 2**20 for name in ("lorafam", "peft"))
            yield Row("memory growth", f"{rows_} x {columns}", "float32", tokens, ours, "peft", theirs, MEMORY)


def line(row: Row) -> str:
    unit = 1.0 if row.what == "memory growth" else 1e3
    bar = "" if row.bar is None else f"{row.bar:>7.2f}x{'' if row.ratio >= row.bar else '  not reached'}"
    return (
        f"{row.what:20}{row.size:>12}  {row.dtype:9}{row.tokens:>5}{unit * row.ours:>10.2f}  {row.other:13}"
        f"{unit * row.theirs:>9.2f}{row.ratio:>8.2f}x{bar}"
    )


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lorafam.bench.cpu", description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=_size, action="append", help="out and in features: 4096x4096")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args(given)
    sizes = options.size or list(SIZES)
    dtypes = [getattr(torch, name) for name in options.dtype] if options.dtype else list(DTYPES)
    print(f"{machine('cpu')}; {', '.join(f'{name} {_version(name)}' for name in PACKAGES)}")
    print("median ms (memory: MiB), rank 16, adapters fp32, W in double-quantised NF4 unless dense; ratio, ratio asked")
    print(f"{'':20}{'size':>12}  {'dtype':9}{'M':>5}{'lorafam':>10}  {'other':13}{'':>9}{'ratio':>9}{'asked':>8}")
    sys.stdout.flush()
    cases = []
    for produce in (lambda: rows(sizes, dtypes, options.seconds), lambda: memory_rows(sizes)):
        for row in produce():
            cases.append(row)
            print(line(row), flush=True)
    asked = [row for row in cases if row.bar is not None]
    missed = [row for row in asked if row.ratio < row.bar]  # type: ignore[operator]
    print(f"{len(asked) - len(missed)} of {len(asked)} reached")
    if options.json:
        write_json(
            options.json, {"machine": machine("cpu"), "rows": [{**row._asdict(), "ratio": row.ratio} for row in cases]}
        )
    return 0


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "not installed"


def _size(text: str) -> tuple[int, int]:
    rows_, columns = text.split("x")
    return int(rows_), int(columns)


if __name__ == "__main__":
    sys.exit(main())
