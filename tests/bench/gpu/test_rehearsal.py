"""`make gpu` without a GPU: CUDA, ncu and compute-sanitizer are `FakeDevice`'s, everything else is what runs there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lorafam.bench.gpu import start
from lorafam.bench.gpu.store import Record

ITEMS = ("check/machine", "check/op-", "check/sanitizer-", "profile/", "bench/peaks")
# all of `make gpu` but the items that take minutes on two cores
MAIN = """
import sys
from lorafam.bench.gpu import __main__ as gpu, plan
chosen = [item for item in plan.items("next", ()) if item.name.startswith(tuple(sys.argv[1].split(",")))]
gpu.items = lambda part, files: chosen
sys.exit(gpu.main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return start.linked_tree(tmp_path_factory.mktemp("tree"))


def make_gpu(tree: Path, items: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {
        **os.environ, "PYTHONPATH": str(tree), "LORAFAM_GPU_DEVICE": "tests.bench.gpu.fake_device:FakeDevice",
        "OMP_NUM_THREADS": "1", **environment,
    }  # fmt: skip
    command = [sys.executable, "-c", MAIN, items, *arguments]
    return subprocess.run(command, cwd=tree, env=given, capture_output=True, text=True, check=False)


def outcomes(folder: Path, name: str) -> set[str]:
    return {case["outcome"] for case in Record(folder / f"{name}.json").cases.values()}


def test_one_kernel_wrong_one_aborts_one_hangs(tree: Path, tmp_path: Path) -> None:
    folder, archive = tmp_path / "results", tmp_path / "packed.tar.gz"
    bad = "quantize_absmax=hang,adalora_penalty=abort,squared_row_norm=wrong"
    items = ",".join(f"check/op-{name}" for name in ("quantize_absmax", "squared", "adalora_p", "adalora_s"))
    done = make_gpu(tree, items, "--results", str(folder), "--packed", str(archive), LORAFAM_FAKE_BAD=bad)
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(folder, "check/op-quantize_absmax") == {"hung"}
    assert outcomes(folder, "check/op-squared_row_norm") == {"failed"}
    assert outcomes(folder, "check/op-adalora_penalty") == {"aborted"}
    assert outcomes(folder, "check/op-adalora_penalty_grad") == {"passed"}
    assert outcomes(folder, "check/op-adalora_scores") == {"passed"}
    assert "FAILED check/op-adalora_penalty: factors: aborted: its process ended by SIGABRT" in done.stdout
    assert "FAILED check/op-quantize_absmax: block scales: hung: not done after 20 s" in done.stdout
    assert "5 of 5 items finished" in done.stdout
    page = (folder / "page.md").read_text()
    assert page.startswith("# Rehearsed GPU 80GB\n")
    assert "its process ended by SIGABRT" in page
    # taken to another machine, nothing is left to do
    again = make_gpu(tree, items, "--results", str(tmp_path / "other"), "--packed", str(archive))
    assert "5 of 5 items finished" in again.stdout
    assert "passed" not in again.stdout


def test_the_tools_are_read(tree: Path, tmp_path: Path) -> None:
    done = make_gpu(tree, "check/machine,check/sanitizer-,profile/,bench/peaks", "--results", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert outcomes(tmp_path, "check/machine") == {"passed"}
    assert outcomes(tmp_path, "check/sanitizer-memcheck") == {"passed"}
    race: dict[str, Any] = Record(tmp_path / "check/sanitizer-racecheck.json").cases
    assert {case["outcome"] for case in race.values()} == {"failed"}
    assert len(race) > 10
    assert "Race reported between Write access at lora_linear_kernel+0x1370" in race["every op"]["why"]
    cases = Record(tmp_path / "profile/kernels.json").cases
    assert all(case["by"] == "ncu" for case in cases.values())
    metrics = cases["lora_linear, 16 tokens"]["kernels"][0]["metrics"]
    assert (metrics["ns"], metrics["bytes/s"], metrics["tensor cores %"]) == (18976.0, 2512345678901.23, None)
    peaks = Record(tmp_path / "bench/peaks.json").cases
    assert peaks["copy"]["bytes_a_second"] > 0
    assert peaks["copy"]["clocks"]["sm_mhz"] == 1980.0
    assert json.loads((tmp_path / "summary.json").read_text())["left"] == []
