"""The page of results made up here: every figure, and nothing that isn't in them."""

from __future__ import annotations

from typing import Any

import pytest
from lorafam.bench.page import escaped, page, text


def rows(method: str, tokens: int, direction: str, times: dict[str, float]) -> list[dict[str, Any]]:
    case = {"method": method, "size": 4096, "tokens": tokens, "direction": direction}
    case |= {"dtype": "bfloat16", "rank": 16}
    ours = times.get("lorafam")
    return [
        {**case, "contender": name, "median_seconds": seconds, "ratio": seconds / ours if ours else None}
        for name, seconds in times.items()
    ]


CASE = {"method": "qlora", "size": 4096, "contender": "axolotl", "reason": "AssertionError: a | b\n <c>"}
RESULTS: dict[str, Any] = {
    "complete": True,
    "date": "2026-03-01T12:30+00:00",
    "gpu": {"name": "Some GPU", "compute_capability": "9.0", "memory_bytes": 85e9, "driver": "580.1"},
    "versions": {"lorafam": "0.1.0", "torch": "2.13.0", "unsloth": "2026.2.1", "lorafusion": None},
    "self_check": {},
    "tests": {"passed": 900, "failed": 1, "skipped": 20, "failures": {"tests/test_a.py::test_b[x|y]": "is 1"}},
    "tuned": {
        "path": "/home/somebody/tuned.json",
        "count": 2,
        "rows": {
            "lora_linear": [
                {"tokens": 16, "dtypes": ["bfloat16", "float16"], "blocks": {"BLOCK_M": 16}, "num_warps": 8},
                {"N": 4096, "shipped": True},
            ]
        },
        "paths": {"lora_linear": [{"path": "staged", "product": "cublas"}]},
    },
    "benchmark": {
        "rows": [
            *rows("qlora", 16, "forward", {"lorafam": 0.0001, "peft": 0.00025, "dense": 0.00008, "unsloth": 0.0003}),
            *rows("qlora", 2048, "forward", {"lorafam": 0.001, "dense": 0.00095}),
            *rows("qlora", 16, "train", {"lorafam": 0.0002, "peft": 0.0004}),
            *rows("adalora", 16, "forward", {"peft": 0.0004}),
        ],
        "failures": {"adalora": "ended with code -6"},
        "left_out": [
            {"contender": "lorafusion", "reason": "lorafusion not installed"},
            {**CASE, "tokens": 16, "direction": "forward"},
            {**CASE, "tokens": 2048, "direction": "train"},
        ],
    },
}


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
    assert shown.startswith("# Some GPU\n\nMeasured by `make gpu`, 2026-03-01T12:30+00:00.\n")
    assert table("Measured by `make gpu`, 2026-03-01T12:30+00:00.", shown)[1:] == [
        ["compute capability", "9.0"],
        ["memory", "85 GB"],
        ["driver", "580.1"],
        ["versions", "lorafam 0.1.0, torch 2.13.0, unsloth 2026.2.1"],
    ]
    assert "somebody" not in shown
    assert "emptied before each call" in shown


def test_checks() -> None:
    shown = page(RESULTS)
    assert "Self-check: every op agrees with eager PyTorch." in shown
    assert "Tests: 900 passed, 1 failed, 20 skipped.\n- `tests/test_a.py::test_b[x|y]`: is 1" in shown
    wrong = page({**RESULTS, "self_check": {"dropout": "other bits"}})
    assert "switched off here:\n- `dropout`: other bits\n" in wrong
    assert "every op agrees" not in wrong


def test_launch_table() -> None:
    assert "2 rows of its own" in page(RESULTS)
    assert table("## Launch table", page(RESULTS)) == [
        ["op", "where (sizes: at most)", "choice"],
        ["`lora_linear`", "tokens 16, dtypes bfloat16 or float16", "BLOCK_M 16, num_warps 8"],
        ["`lora_linear`", "N 4096", "as shipped"],
        ["`lora_linear`", "everywhere", "path staged, product cublas"],
    ]


def test_times() -> None:
    shown = page(RESULTS)
    qlora = shown.split("### QLoRA\n")[1]
    assert table("#### forward, bfloat16", qlora) == [
        ["size", "tokens", "lorafam ms", "PEFT", "dense", "Unsloth"],
        ["4096²", "16", "0.100", "2.50x", "0.80x", "3.00x"],
        ["4096²", "2048", "1.000", "-", "0.95x", "-"],
    ]
    assert table("#### forward + backward, bfloat16", qlora) == [
        ["size", "tokens", "lorafam ms", "PEFT"],
        ["4096²", "16", "0.200", "2.00x"],
    ]
    assert table("#### forward, bfloat16", shown.split("### AdaLoRA (NF4 base)\n")[1])[1] == ["4096²", "16", "-", "-"]
    assert "layers of rank 16" in shown
    assert "in x's dtype for Unsloth, whose" in shown
    assert "Unsloth has kernels for LoRA (dense base) and QLoRA." in shown


def test_left_out_and_failed() -> None:
    shown = page(RESULTS)
    assert "### Failed\n\n- `adalora`: ended with code -6\n" in shown
    assert shown.endswith(
        "### Left out\n\n"
        "- LoRAFusion: lorafusion not installed\n"
        "- axolotl, QLoRA: AssertionError: a \\| b \\<c> (4096² x 16 forward; 4096² x 2048 forward + backward)\n"
    )


def test_what_has_not_run_says_so() -> None:
    nothing = {"rows": [], "failures": {}, "left_out": []}
    parts = {"complete": False, "self_check": None, "tests": None, "tuned": None, "benchmark": nothing}
    shown = page({**RESULTS, **parts})
    assert "It didn't come to its end" in shown
    for part in ("Self-check: not run.", "Tests: not run.", "Tuning: not run.", "Nothing was measured."):
        assert part in shown


def test_a_part_that_did_not_end() -> None:
    tests = {"passed": 0, "failed": 0, "skipped": 0, "failures": {}, "error": "ended with code -11"}
    tuned = {"path": "x", "count": 0, "rows": {}, "paths": {}, "error": "ended with code 1"}
    shown = page({**RESULTS, "tests": tests, "tuned": tuned})
    assert "Tests: 0 passed, 0 failed, 0 skipped; ended with code -11." in shown
    assert "It ended with code 1." in shown


@pytest.mark.parametrize(("cell", "expected"), [("a | b", "a \\| b"), ("a\n  b", "a b"), ("<b>", "\\<b>")])
def test_escaped(cell: str, expected: str) -> None:
    assert escaped(cell) == expected


def test_text() -> None:
    assert text({"tokens": 16, "dtypes": ["x", "y"], "path": "fused"}) == "tokens 16, dtypes x or y, path fused"
