"""`make gpu` from part to part, with parts made up here: what is written when, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from lorafam.bench import gpu
from lorafam.bench.case import CASES

from lorafam.backends import user_files
from lorafam.backends.triton_gpu import user_table

CARD = {"name": "Some GPU 80GB/x", "compute_capability": "9.0", "memory_bytes": 85e9, "driver": "580.1"}
ROW = {"size": 4096, "tokens": 16, "direction": "forward", "dtype": "bfloat16", "rank": 16}
TUNED = {"path": "/cache/tuned.json", "count": 1, "rows": {"dropout": [{"num_warps": 8}]}, "points": []}
JUNIT = '<testsuites><testsuite><testcase file="tests/test_a.py" name="test_b">{}</testcase></testsuite></testsuites>'


ABSENT = {"contender": "unsloth", "reason": "unsloth not installed"}


def measured(method: str) -> dict[str, Any]:
    """A benchmark of one case: 1 ms, PEFT 3 ms."""
    entries = [
        {"extra_info": {**ROW, "name": method, "contender": contender}, "stats": {"median": seconds}}
        for contender, seconds in (("lorafam", 0.001), ("peft", 0.003))
    ]
    return {"benchmarks": entries, "failures": {}, "left_out": [ABSENT]}


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A card whose parts all go well, and where its results will be."""
    passed = {"passed": 9, "failed": 0, "skipped": 2, "failures": {}}
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(gpu, "refuse_without_gpu", lambda: None)
    monkeypatch.setattr(gpu, "card", lambda: CARD)
    monkeypatch.setattr(gpu, "checked", lambda _: {})
    monkeypatch.setattr(gpu, "tested", lambda *_: passed)
    monkeypatch.setattr(gpu, "tuned", lambda _: TUNED)
    monkeypatch.setattr(gpu, "benchmarked", lambda method, *_: measured(method))
    return tmp_path / "results" / "some-gpu-80gb-x.json"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3"),
        ("NVIDIA GeForce RTX 4090", "nvidia-geforce-rtx-4090"),
        ("../Quadro (T4) ", "quadro-t4"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert gpu.slug(name) == expected


def test_everything_is_written_and_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main() == 0
    found = json.loads(path.read_text())
    assert set(path.parent.iterdir()) == {path, path.with_suffix(".md")}
    assert (found["complete"], found["gpu"], found["self_check"]) == (True, CARD, {})
    assert datetime.now(UTC) - datetime.fromisoformat(found["date"]) < timedelta(minutes=5)
    assert set(found["versions"]) == set(gpu.PACKAGES)
    assert found["versions"]["unsloth"] is None
    assert found["versions"]["torch"] == torch.__version__
    assert found["tests"]["passed"] == 9
    assert found["tuned"] == TUNED
    rows = found["benchmark"]["rows"]
    assert len(rows) == 2 * len(CASES)
    assert rows[1] == {**ROW, "method": "lora", "contender": "peft", "median_seconds": 0.003, "ratio": 3.0}
    shown = capsys.readouterr().out
    assert "Some GPU 80GB/x, compute capability 9.0, 85 GB, driver 580.1" in shown
    assert "9 passed, 0 failed, 2 skipped" in shown
    assert "tuned: 1 rows of its own, in /cache/tuned.json" in shown
    assert "FAILED" not in shown
    assert [line.split()[:6] for line in shown.splitlines() if line.startswith("adalora ")] == [
        ["adalora", "4096", "16", "1.000", "3.00x", "-"]
    ]
    assert found["benchmark"]["left_out"] == [ABSENT]
    assert shown.count("left out: Unsloth: unsloth not installed") == 1


def test_the_page_is_there_after_each_part(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    write_text = gpu.write_text
    monkeypatch.setattr(gpu, "write_text", lambda to, text: pages.append(text) or write_text(to, text))
    assert gpu.main() == 0
    assert len(pages) == 4 + len(CASES) + 1
    assert path.with_suffix(".md").read_text() == pages[-1]
    told = ("Self-check: not run", "Tests: not run", "Tuning: not run", "Nothing was measured")
    assert [sum(word in text for word in told) for text in pages] == [4, 3, 2, 1] + [0] * (len(CASES) + 1)


@pytest.mark.parametrize(
    ("part", "result", "told"),
    [
        ("checked", {"dropout": "other bits"}, "FAILED self-check: dropout: other bits"),
        (
            "tested",
            {"passed": 8, "failed": 1, "skipped": 2, "failures": {"tests/test_a.py::test_b": "wrong"}},
            "FAILED tests/test_a.py::test_b: wrong",
        ),
        (
            "tested",
            {"passed": 0, "failed": 0, "skipped": 0, "failures": {}, "error": "ended with code -11"},
            "FAILED tests: ended with code -11",
        ),
        ("tuned", {**TUNED, "error": "ended with code 1"}, "FAILED tune: ended with code 1"),
        (
            "benchmarked",
            {"benchmarks": [], "failures": {"qlora y": "worse"}, "left_out": []},
            "FAILED benchmark: qlora y: worse",
        ),
        ("benchmarked", {"benchmarks": [], "failures": {}, "left_out": []}, "FAILED benchmark: nothing was measured"),
    ],
)
def test_a_failure_is_written_and_gives_an_exit_code(
    part: str, result: Any, told: str, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, part, lambda *_: result)
    assert gpu.main() == 1
    assert json.loads(path.read_text())["complete"]
    assert told in capsys.readouterr().out


def test_ctrl_c_keeps_what_was_measured(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def second_is_interrupted(method: str, *_: Any) -> dict[str, Any]:
        if method == "qlora":
            raise KeyboardInterrupt
        return measured(method)

    monkeypatch.setattr(gpu, "benchmarked", second_is_interrupted)
    assert gpu.main() == gpu.INTERRUPTED
    found = json.loads(path.read_text())
    assert not found["complete"]
    assert found["tests"]["passed"] == 9
    assert {row["method"] for row in found["benchmark"]["rows"]} == {"lora"}


def writing(text: str | None, code: int) -> Callable[..., int]:
    """A part that leaves `text` where it is told to write, and ends with `code`."""

    def run(command: list[str], environment: Any) -> int:
        target = command[-1].removeprefix("--junitxml=")
        if text is not None:
            Path(target).write_text(text)
        return code

    return run


@pytest.mark.parametrize(
    ("text", "code", "passed", "failures", "error"),
    [
        (JUNIT.format(""), 0, 1, {}, None),
        (JUNIT.format('<failure message="wrong"/>') * 1, 1, 0, {"tests/test_a.py::test_b": "wrong"}, "code 1"),
        (JUNIT.format(""), 2, 1, {}, "ended with code 2"),
        (None, -11, 0, {}, "ended with code -11"),
        ("<testsuites>", 3, 0, {}, "ended with code 3"),
    ],
)
def test_tested(
    text: str | None, code: int, passed: int, failures: dict, error: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(gpu, "run", writing(text, code))
    found = gpu.tested(tmp_path / "tests.xml", {})
    assert (found["passed"], found["failures"]) == (passed, failures)
    assert (error in found["error"]) if error else ("error" not in found)


@pytest.mark.parametrize("code", [0, 1, 130])
@pytest.mark.parametrize("kept", [True, False])
def test_tuned(code: int, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own folder gets the table, the folder of the parts that follow a copy."""
    own, parts = tmp_path / "own", tmp_path / "parts"
    monkeypatch.setenv(user_files.CACHE_DIR, str(own))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    rows = {"dropout": [{"num_warps": 8}, {"shipped": True}]}
    table = {"rows": rows, "paths": {"lora_linear": [{"path": "fused"}]}, "points": [{"measured": 3}]}

    def run(command: list[str], environment: Any) -> int:
        assert environment[user_files.CACHE_DIR] == str(own)
        assert {"tune", "--minutes=10", "--shape=4096,4096", "--tokens=16"} <= set(command)
        if kept:
            user_files.write_whole(user_table.table_file("Some GPU"), table)
        return code

    monkeypatch.setattr(gpu, "run", run)
    found = gpu.tuned({user_files.CACHE_DIR: str(parts)})
    assert (found["count"], found["rows"]) == ((2, table["rows"]) if kept and code != 1 else (0, {}))
    assert found.get("error") == (f"ended with code {code}" if code else None)
    assert Path(found["path"]).parent == own
    assert [json.loads(path.read_text()) for path in parts.glob("tuned-Some-GPU-*.json")] == [table] * (
        kept and code != 1
    )


@pytest.mark.parametrize(
    ("text", "code", "failures"),
    [
        ('{"benchmarks": [], "failures": {}}', 0, {}),
        ('{"benchmarks": [], "failures": {"a": "b"}}', 1, {"a": "b"}),
        ('{"benchmarks": [], "failures": {}}', 3, {"lora": "ended with code 3"}),
        (None, -6, {"lora": "ended with code -6"}),
    ],
)
def test_benchmarked(text: str | None, code: int, failures: dict, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu, "run", writing(text, code))
    assert gpu.benchmarked("lora", tmp_path / "lora.json", {})["failures"] == failures


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print('noise'); print('{\"dropout\": \"wrong\"}')", {"dropout": "wrong"}),
        ("raise ValueError('an illegal address')", {"self-check": "ended with code 1: ValueError: an illegal address"}),
    ],
)
def test_checked(code: str, expected: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SELF_CHECK", code)
    assert gpu.checked({}) == expected


def test_no_gpu_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "RESULTS", tmp_path / "results")
    with pytest.raises(SystemExit, match=r"^gpu: expected a CUDA GPU, torch finds none$"):
        gpu.main()
    assert not (tmp_path / "results").exists()
