"""`make bench` end to end, small, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lorafam.bench.report import rows
from lorafam.bench.run import arguments

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lorafam.bench.run", *arguments]
    # pytest-benchmark measures nothing where it sees that tests share the machine
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)


def test_small_run(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    result = run(
        "--sizes",
        "64",
        "--tokens",
        "2",
        "--methods",
        "qlora",
        "--rank",
        "4",
        "--seconds",
        "0.01",
        "--json",
        str(output),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("qlora")
    found = json.loads(output.read_text())
    assert (found["failures"], found["left_out"]) == ({}, [])
    measured = rows(found)
    assert len(measured) == 6
    assert {(row["method"], row["size"], row["tokens"], row["dtype"]) for row in measured} == {
        ("qlora", 64, 2, "float32")
    }


def test_a_case_that_fails_is_written(tmp_path: Path) -> None:
    """A size of 0 has no result to be checked."""
    output = tmp_path / "results.json"
    result = run("--sizes", "0", "--tokens", "2", "--methods", "lora", "--json", str(output))
    assert result.returncode == 1
    found = json.loads(output.read_text())
    assert found["benchmarks"] == []
    assert len(found["failures"]) == 2
    assert [row["contender"] for row in found["left_out"]] == ["eager", "peft"] * 2


def test_defaults_of_a_device() -> None:
    on_cpu, on_gpu = arguments([]), arguments(["--device", "cuda", "--tokens", "3"])
    assert (on_cpu.device, on_cpu.sizes, on_cpu.tokens, on_cpu.dtype) == ("cpu", [2048, 4096], [1, 16, 128], "float32")
    assert (on_gpu.sizes, on_gpu.tokens, on_gpu.dtype) == ([4096, 8192], [3], "bfloat16")
    assert arguments(["--device", "cuda"]).tokens == [1, 16, 128, 2048]


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
def test_no_gpu_is_one_line() -> None:
    result = run("--device", "cuda")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "bench: expected a CUDA GPU, torch finds none"
    assert result.stdout == ""
