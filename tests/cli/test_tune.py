"""The command: what it takes, what it refuses, what it tells."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lorafam.kernels.launch_table import prefer
from typer.testing import CliRunner

from lorafam.cli import tune
from lorafam.cli.main import app
from lorafam.tune import session
from lorafam.tune.points import OPS, points

SUMMARY = session.Summary(points=4, finished=3, won=2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What a session is asked for, on a GPU in name only."""
    found: dict[str, Any] = {"path": tmp_path / "tuned.json"}

    def measure(points: Any, gpu: Any, path: Path, reporter: Any, **more: Any) -> session.Summary:
        found.update(points=points, **more)
        return SUMMARY

    monkeypatch.setattr(tune, "found", lambda: (SimpleNamespace(model="x", architecture="sm_90"), found["path"]))
    monkeypatch.setattr(session, "tune", measure)
    return found


def test_flags_say_what_is_measured(asked: dict[str, Any]) -> None:
    given = (
        "--op lora_linear --op row_norm --shape 64,128 --tokens 1 --tokens 4 --rank 8 --dtype float16 --weight dense"
    )
    result = CliRunner().invoke(app, ["tune", *given.split(), "--minutes", "0.5", "--again"])
    assert result.exit_code == 0, result.stderr
    assert asked["points"] == points(["lora_linear", "row_norm"], [(64, 128)], [1, 4], 8, "float16", ["dense"])
    assert (asked["seconds"], asked["again"]) == (30, True)
    assert f"3 of 4 points finished, 2 faster than shipped: {asked['path']}\n" in result.stdout
    assert "the same command goes on where this one stopped" in result.stdout


def test_without_flags_everything_is_measured(asked: dict[str, Any]) -> None:
    assert CliRunner().invoke(app, ["tune"]).exit_code == 0
    assert asked["points"] == points()
    assert {point.op for point in points()} == set(OPS)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--op", "lora"], "--op: expected one of lora_linear, .*, got 'lora'"),
        (["--shape", "64"], "--shape: expected N,K, two numbers of at least 1, got '64'"),
        (["--shape", "64,0"], "--shape: expected N,K, two numbers of at least 1, got '64,0'"),
        (["--tokens", "0"], "--tokens: expected at least 1, got 0"),
        (["--rank", "-1"], "--rank: expected at least 1, got -1"),
        (["--dtype", "float64"], "--dtype: expected one of bfloat16, float16, float32, got 'float64'"),
        (["--weight", "int8"], "--weight: expected one of nf4, dense, got 'int8'"),
        (["--minutes", "0"], "--minutes: expected more than 0, got 0"),
        (["--op", "nf4_dequantize", "--weight", "dense"], "--op: nothing to measure; nf4_dequantize needs"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(flags: list[str], told: str, asked: dict[str, Any]) -> None:
    result = CliRunner().invoke(app, ["tune", *flags])
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.search(told, result.stderr)
    assert result.stderr.startswith("lorafam tune: ")
    assert result.stderr.count("\n") == 1
    assert "points" not in asked


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without a GPU")
@pytest.mark.parametrize("flags", [[], ["--show"]])
def test_no_gpu_is_told(flags: list[str]) -> None:
    result = CliRunner().invoke(app, ["tune", *flags], env={"LORAFAM_BACKEND": None})
    assert result.exit_code == 2
    assert result.stderr == "lorafam tune: expected a GPU that the kernels run on: torch finds no GPU\n"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "lorafam tune: interrupted; the same command goes on; finished points are in "),
        (OSError("no space left"), 1, "lorafam tune: no space left\n"),
        (RuntimeError("the GPU no longer answers"), 1, "lorafam tune: the GPU no longer answers\n"),
    ],
)
def test_what_goes_wrong_meanwhile_is_told(
    error: BaseException, code: int, told: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(session, "tune", measure)
    result = CliRunner().invoke(app, ["tune"])
    assert result.exit_code == code
    assert result.stderr.startswith(told)


def test_show(asked: dict[str, Any]) -> None:
    prefer("sm_90", {})
    result = CliRunner().invoke(app, ["tune", "--show"], env={"COLUMNS": "200"})
    assert result.stdout == f"{asked['path']}: not there, the shipped table is in use\n"
    row = {"tokens": 4, "K": 64, "blocks": {"BLOCK_M": 16, "BLOCK_K": 64}, "num_warps": 2, "num_stages": 3}
    asked["path"].write_text("{}")
    prefer("sm_90", {"dropout": [row]})
    try:
        result = CliRunner().invoke(app, ["tune", "--show"], env={"COLUMNS": "200"})
    finally:
        prefer("sm_90", {})
    assert result.stdout.startswith(f"{asked['path']}\n")
    assert "BLOCK_M 16 BLOCK_K 64, 2 warps, 3 stages" in result.stdout
    assert "points" not in asked


def test_from_prints_rows_and_needs_no_gpu(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["tune", "--from", str(tmp_path)])
    assert result.exit_code == 2
    assert "--from: expected a table of lorafam tune (tuned-*.json), found none in" in " ".join(result.stderr.split())
    (tmp_path / "tuned-x.json").write_text('{"architecture": "sm_90", "points": []}')
    result = CliRunner().invoke(app, ["tune", "--from", str(tmp_path)])
    assert (result.exit_code, result.stdout) == (0, '{"rows": {}, "paths": {}}\n')
