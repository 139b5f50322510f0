"""`make bench` end to end, small, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
    assert len(json.loads(output.read_text())["benchmarks"]) == 6
