from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from lorafam.cli.tune_report import TuneConsole, table, verdict

BLOCKS = {"BLOCK_M": 16, "BLOCK_K": 64}
SHIPPED = {"blocks": BLOCKS, "num_warps": 4, "num_stages": 1, "seconds": 20e-6}
BEST = {**SHIPPED, "num_warps": 2, "seconds": 10e-6}
FOUND = {"finished": True, "shipped": SHIPPED, "best": BEST, "measured": 9, "wrong": 1, "broken": 2}
COUNTS = "(9 measured, 1 wrong, 2 did not run)"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, f"20.0 µs → 10.0 µs, 2.00 times as fast {COUNTS}"),
        ({"best": SHIPPED}, f"20.0 µs, the shipped one stays {COUNTS}"),
        ({"shipped": None, "failure": "wrong"}, f"10.0 µs; the shipped one is not right: wrong {COUNTS}"),
        ({"shipped": None, "best": None, "failure": "x"}, f"no configuration is right; the shipped one: x {COUNTS}"),
        (
            {"finished": False},
            f"20.0 µs → 10.0 µs, 2.00 times as fast {COUNTS[:-1]}, not finished)",
        ),
    ],
)
def test_verdict(change: dict[str, Any], told: str) -> None:
    assert verdict({**FOUND, **change}) == told


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_a_point(terminal: bool) -> None:
    out = io.StringIO()
    reporter = TuneConsole(Console(file=out, force_terminal=terminal, width=200))
    reporter.note("goes on: 1 of 2 points [are] there")
    reporter.begin(1, 2)
    reporter.starts("lora_linear, 64 x 64")
    reporter.ends("lora_linear, 64 x 64", FOUND)
    reporter.end()
    assert "[are]" in out.getvalue()
    assert f"lora_linear, 64 x 64: 20.0 µs → 10.0 µs, 2.00 times as fast {COUNTS}" in out.getvalue()
    assert ("2/2" in out.getvalue()) is terminal


def test_table() -> None:
    row = {"tokens": 4, "N": 8, "K": 64, "rank": 16, "dtypes": ["float16"], "weights": ["packed"], "blocks": BLOCKS}
    rows = {"lora_linear": [row, {"tokens": 64, "shipped": True}]}
    paths = {"lora_linear": [{"tokens": 512, "path": "staged", "product": "cublas"}, {"path": "fused"}]}
    out = io.StringIO()
    Console(file=out, width=200).print(table(rows, paths))
    _, first, second, third, fourth = (" ".join(line.split()) for line in out.getvalue().splitlines())
    sizes = "tokens 4 N 8 K 64 rank 16 float16 packed"
    assert first == f"lora_linear {sizes} BLOCK_M 16 BLOCK_K 64, 4 warps, 1 stages"
    assert second == "lora_linear tokens 64 as shipped"
    assert (third, fourth) == ("lora_linear tokens 512 staged by cublas", "lora_linear fused")
