"""The page of results made up here: every figure, and nothing that isn't in them."""

from __future__ import annotations

from typing import Any

import pytest
from lorafam.bench.page import escaped, page, text


def layer(tokens: int, direction: str, times: dict[str, float], method: str = "qlora", **more: Any) -> dict[str, Any]:
    """Cases of a layers' item: seconds by contender."""
    case = {"method": method, "shape": [4096, 4096], "tokens": tokens, "direction": direction, "table": "untuned"}
    case |= {"dtype": "bfloat16", "rank": 16, "bytes": 1e7, "flops": 1e9, **more}
    return {
        f"{tokens} {direction} {name}": {
            **case, "outcome": "passed", "contender": name, "gpu": seconds, "gpu_warm": seconds / 2, "host": 2e-5,
        }
        for name, seconds in times.items()
    }  # fmt: skip


def item(cases: dict[str, Any], finished: bool = True) -> dict[str, Any]:
    return {"finished": finished, "cases": cases}


FAILED = {"outcome": "aborted", "why": "its process ended by SIGABRT | <x>"}
RESULTS: dict[str, Any] = {
    "date": "2026-03-01T12:30+00:00",
    "gpu": {"name": "Some GPU", "compute_capability": "9.0", "memory_bytes": 85e9, "driver": "580.1"},
    "versions": {"lorafam": "0.1.0", "torch": "2.13.0", "bitsandbytes": None},
    "code": "abc",
    "commit": None,
    "left": [],
    "items": {
        "check/op-dropout": item({"a": {"outcome": "passed"}, "b": FAILED, "c": {"outcome": "passed"}}),
        "tests/test_x": item({"collection": {"outcome": "left out", "why": "not installed: hqq"}}, finished=False),
        "bench/peaks": item(
            {
                "copy": {"outcome": "passed", "bytes_a_second": 2e12},
                "product bfloat16": {"outcome": "passed", "flops": 5e14},
            }
        ),
        "bench/untuned-qlora-4096x4096-first": item(
            {
                **layer(16, "forward", {"lorafam": 1e-5, "peft": 2.5e-5, "dense": 8e-6}),
                **layer(2, "forward", {"lorafam": 2e-5}),
                "16 train lorafam": {"outcome": "left out", "why": "not installed: hqq"},
            }
        ),
        "bench/tuned-qlora": item(layer(16, "forward", {"lorafam": 5e-6, "peft": 1e-5}, table="tuned")),
        "bench/lora": item(layer(16, "train", {"peft": 1e-5}, method="lora")),
        "tune/4096x4096-16": item(
            {
                "p": {
                    "outcome": "passed", "point": "lora_linear, 16 tokens", "won": True,
                    "shipped": {"blocks": {"BLOCK_M": 32}, "num_warps": 4, "seconds": 2e-5},
                    "best": {"blocks": {"BLOCK_M": 16}, "num_warps": 8, "seconds": 1e-5},
                }
            }
        ),
        "profile/kernels": item(
            {"x": {"outcome": "passed", "call": "16 tokens", "kernels": [{"kernel": "k", "metrics": {"µs": 12.5}}]}}
        ),
        "step/qlora": item(
            {
                "s": {
                    "outcome": "passed", "title": "lorafam", "tokens_a_second": 5e3, "step_seconds": 0.4,
                    "peak_bytes": 9e9,
                }
            }
        ),
    },
}  # fmt: skip


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(heading: str, shown: str) -> list[list[str]]:
    """The cells of the first table after a line, without its rule."""
    lines = shown.split(f"\n{heading}\n", 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    end = next((number for number, line in enumerate(lines[start:], start) if not line.startswith("|")), len(lines))
    head, _, *rest = (cells(line) for line in lines[start:end])
    return [head, *rest]


def test_where_and_when() -> None:
    shown = page(RESULTS)
    assert shown.startswith("# Some GPU\n\nMeasured by `make gpu`, begun 2026-03-01T12:30+00:00.\n")
    assert table("Measured by `make gpu`, begun 2026-03-01T12:30+00:00.", shown)[1:] == [
        ["compute capability", "9.0"],
        ["memory", "85 GB"],
        ["driver", "580.1"],
        ["versions", "lorafam 0.1.0, torch 2.13.0"],
        ["code", "abc"],
    ]
    assert "**Not at its end: 2 items are left, the next is bench/b.**" in page({**RESULTS, "left": ["bench/b", "c"]})


def test_checks() -> None:
    shown = page(RESULTS)
    assert table("## Checks", shown) == [
        ["", "passed", "failed", "aborted", "hung", "left out"],
        ["`check/op-dropout`", "2", "", "1", "", ""],
        ["`tests/test_x` (not finished)", "", "", "", "", "1"],
    ]
    assert "## Failed\n\n- `check/op-dropout`, b: aborted: its process ended by SIGABRT \\| \\<x>\n" in shown
    assert shown.endswith(
        "## Left out\n\n- not installed: hqq: tests/test_x collection; "
        "bench/untuned-qlora-4096x4096-first 16 train lorafam\n"
    )


def test_figures() -> None:
    shown = page(RESULTS)
    assert "Reached in this run: a large copy 2.00 TB/s, a large product 500 TFLOP/s." in shown
    head = ["N x K", "tokens", "µs", "warm", "host", "of peak"]
    assert table("### QLoRA, forward, untuned", shown) == [
        [*head, "PEFT", "dense"],
        ["4096 x 4096", "2", "20.0", "10.0", "20.0", "25 %", "-", "-"],
        ["4096 x 4096", "16", "10.0", "5.0", "20.0", "50 %", "2.50x", "0.80x"],
    ]
    assert table("### QLoRA, forward, tuned", shown)[1][2] == "5.0"
    assert table("### LoRA (dense base), forward + backward, untuned", shown)[1][2:] == ["-", "-", "-", "-", "-"]
    assert table("## Launch table", shown)[1] == ["lora_linear, 16 tokens", "20.0", "10.0", "BLOCK_M 16, num_warps 8"]
    assert table("## Kernels", shown) == [["call", "kernel", "µs"], ["16 tokens", "k", "12.5"]]
    assert table("## A training step", shown)[1] == ["lorafam", "5000", "400.0", "9.00"]


def test_nothing_has_run() -> None:
    shown = page({**RESULTS, "items": {}})
    assert shown.endswith("## Checks\n\nNot run.\n")


@pytest.mark.parametrize(("cell", "expected"), [("a | b", "a \\| b"), ("a\n  b", "a b"), ("<b>", "\\<b>")])
def test_escaped(cell: str, expected: str) -> None:
    assert escaped(cell) == expected


def test_text() -> None:
    assert text({"tokens": 16, "dtypes": ["x", "y"], "path": "fused"}) == "tokens 16, dtypes x or y, path fused"
