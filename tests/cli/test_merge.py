"""The command: what it writes and tells, a run that is killed, and that bad input is told in a line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from lorafam.cli.main import app
from lorafam.cli.merge_report import ConsoleProgress
from tests.model.on_disk import write_adapter, write_model


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("merge")
    model = write_model(folder / "model")
    adapter = write_adapter(model, folder / "adapter", "dora")
    return ["--model", str(model), "--adapter", str(adapter)]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_merges_and_tells(given: list[str], tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    flags = [*given, "--output", output, "--dtype", "bf16", "--max-shard-size", "20KB", "--threshold", "0.5"]
    result = CliRunner().invoke(app, ["merge", *flags])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    rows = [line for line in lines if line.startswith("model.layers.*.")]
    assert len(rows) == 3
    assert all(re.search(r"proj +x2 +100 % +[\d.]+ % +[\d.]+ % +[\d.]+ %", row) for row in rows)
    assert "6 of 6 layers merged as bf16" in lines
    assert lines[-1] == f"{output}: 2 files, 37 kB; every layer's figures in merge-report.json"
    assert result.stderr.splitlines() == [
        "model-00001-of-00002.safetensors  19 kB",
        "model-00002-of-00002.safetensors  19 kB",
    ]
    report = json.loads((tmp_path / "out" / "merge-report.json").read_text())
    assert (report["dtype"], report["threshold"], report["method"], len(report["layers"])) == ("bf16", 0.5, "dora", 6)


def test_advice_is_told(given: list[str], tmp_path: Path) -> None:
    weak = write_adapter(Path(given[1]), tmp_path / "adapter", lora_alpha=1e-4)
    flags = [*given[:2], "--adapter", str(weak), "--output", str(tmp_path / "out"), "--dtype", "bf16"]
    result = CliRunner().invoke(app, ["merge", *flags])
    assert result.exit_code == 0, result.stderr
    assert len(re.findall("not advised", result.stdout)) == 3
    assert (
        "6 of 6 layers merged as bf16; 6 better unmerged (over 10 % of the update lost, or rounding greater than it): "
        in result.stdout
    )


# SIGKILL before the rename whose number comes first among the arguments
KILLED = """
import os, signal, sys
from lorafam.cli.main import app

left, real = [int(sys.argv.pop(1))], os.replace

def replace(*names):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*names)

os.replace = replace
app()
"""


@pytest.mark.parametrize("at", [4, 5])
def test_killed_and_resumed(at: int, given: list[str], tmp_path: Path) -> None:
    """Killed once a shard is written and before it has its name, then before the state says so of another."""
    flags = [*given, "--dtype", "bf16", "--max-shard-size", "10KB", "--output"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert CliRunner().invoke(app, ["merge", *flags, str(whole)]).exit_code == 0
    done = subprocess.run([sys.executable, "-c", KILLED, str(at), "merge", *flags, str(out)], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    there = [path.name for path in out.iterdir()]
    assert "merge-state.json" in there
    assert any(name.endswith(".tmp") for name in there)
    again = CliRunner().invoke(app, ["merge", *flags, str(out)])
    assert (again.exit_code, again.stderr) == (
        2,
        f"lorafam merge: output: {out} has an unfinished merge; resume it (--resume) or choose another folder\n",
    )
    resumed = CliRunner().invoke(app, ["merge", "--resume", "--output", str(out)])
    assert resumed.exit_code == 0, resumed.stderr
    assert re.match(r"going on: \d+ kB of 37 kB are there\n", resumed.stderr)
    assert contents(out) == contents(whole)


def test_ctrl_c_says_how_to_go_on(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ConsoleProgress, "shard", interrupt)
    output = tmp_path / "my out"
    result = CliRunner().invoke(app, ["merge", *given, "--output", str(output)])
    assert result.exit_code == 130
    told = f"lorafam merge: interrupted; go on with: lorafam merge --resume --output '{output}'\n"
    assert result.stderr == told
    monkeypatch.undo()
    assert CliRunner().invoke(app, ["merge", "--resume", "--output", str(output)]).exit_code == 0


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--dtype", "int8"], "dtype: expected one of 'same', 'bf16', 'fp16', 'fp32', got 'int8'"),
        (["--max-shard-size", "huge"], "max_shard_size: expected a size like 5GB or 500MB, got 'huge'"),
        (["--model", "nowhere"], "model: no such folder: nowhere"),
        (["--model", "model.gguf"], "model: model.gguf is a GGUF file, expected a folder with safetensors files"),
        (["--adapter", "nowhere"], "adapter: no such folder: nowhere"),
        (["--threshold", "-1"], "threshold: expected a share of the update"),
        (["--resume"], "output: .* has no unfinished merge to resume"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(flags: list[str], told: str, given: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["merge", *given, "--output", str(tmp_path / "out"), *flags])
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.match(f"lorafam merge: {told}", result.stderr)
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_output_is_asked_for() -> None:
    result = CliRunner().invoke(app, ["merge"], prog_name="lorafam")
    assert (result.exit_code, result.stderr) == (2, "lorafam merge: Missing option '--output'.\n")


def test_a_disk_error_is_no_bad_input(given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["lorafam.model.merged_tensors"], "save_file", full)
    result = CliRunner().invoke(app, ["merge", *given, "--output", str(tmp_path / "out")])
    assert (result.exit_code, result.stderr) == (1, "lorafam merge: [Errno 28] No space left on device\n")


def test_a_bar_in_a_terminal() -> None:
    console = Console(force_terminal=True, width=100, record=True, legacy_windows=False)
    bar = ConsoleProgress(console)
    bar.begin(0, 1000)
    bar.tensor("model.norm.weight", 500)
    assert bar._bar is not None
    task = bar._bar.tasks[0]
    assert (task.completed, task.total, task.description) == (500, 1000, "model.norm.weight")
    bar.shard("model.safetensors", 1, 1, 1000)
    bar.end()
    bar.end()
    assert "model.safetensors  1 kB" in console.export_text()
