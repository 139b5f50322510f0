"""`make bench` end to end, small, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lorafam.bench import run as bench
from lorafam.bench.report import rows
from lorafam.bench.run import arguments

from tests.bench.peers.fakes import write_fake

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


SMALL = ("--sizes", "64", "--tokens", "2", "--rank", "4", "--seconds", "0.01")


@pytest.fixture
def peers_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`bench.main` takes peers here too, found in a folder, which is given back."""
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "peers"
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(bench, "contenders", lambda *_: (["lorafam", "eager"], ["unsloth", "lorafusion"], []))
    return folder


def test_peers_run_beside(peers_on_the_cpu: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One is timed where it applies; one that raises is left out by name, and the run is a success."""
    write_fake(peers_on_the_cpu, "unsloth")
    write_fake(peers_on_the_cpu, "lorafusion", before="raise RuntimeError('no TMA here')\n")
    output = tmp_path / "results.json"
    assert bench.main([*SMALL, "--methods", "lora", "adalora", "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert {row["method"] for row in rows(found) if row["contender"] == "unsloth"} == {"lora"}
    assert all(row["ratio"] > 0 for row in rows(found))
    case = {"method": "lora", "size": 64, "tokens": 2, "contender": "lorafusion", "reason": "RuntimeError: no TMA here"}
    assert found["left_out"] == [{**case, "direction": direction} for direction in ("forward", "train")]
    shown = capfd.readouterr().out
    assert "unsloth 1.2, lorafusion 1.2" in shown
    assert "left out: LoRAFusion lora 64 x 2 forward: RuntimeError: no TMA here" in shown
    assert "FAILED" not in shown


def test_a_wrong_or_crashing_peer_is_left_out(peers_on_the_cpu: Path, tmp_path: Path) -> None:
    write_fake(peers_on_the_cpu, "unsloth", before="import os; os._exit(9)\n")
    write_fake(peers_on_the_cpu, "lorafusion")
    code = peers_on_the_cpu / "lorafusion" / "ops" / "lora_v1.py"
    code.write_text(code.read_text().replace("* alpha", "* alpha * 1.01"))
    output = tmp_path / "results.json"
    assert bench.main([*SMALL, "--methods", "lora", "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert {row["contender"] for row in rows(found)} == {"lorafam", "eager"}
    crashed, *wrong = found["left_out"]
    assert crashed == {"contender": "unsloth", "reason": "ended with code 9"}
    assert [row["contender"] for row in wrong] == ["lorafusion"] * 2
    for row in wrong:
        assert row["reason"].startswith("AssertionError: lora y: error against fp64")
        assert "limit 1.5" in row["reason"]


def test_who_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(type(bench.PEERS["axolotl"]), "missing", lambda peer: [peer.name] * (peer.name != "axolotl"))
    together, alone, left_out = bench.contenders("cuda", ["lora", "qlora"])
    assert together == ["lorafam", "eager", "peft", "dense"]
    assert alone == ["axolotl"]
    assert left_out[0] == {"contender": "unsloth", "reason": "unsloth not installed"}
    assert capsys.readouterr().out.splitlines() == [
        "Unsloth is left out: unsloth not installed",
        "LoRAFusion is left out: lorafusion not installed",
    ]
    assert bench.contenders("cpu", ["qlora"]) == (["lorafam", "eager", "peft"], [], [])


def test_without_bitsandbytes_who_needs_it_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "absent", lambda packages: [name for name in packages if name == "bitsandbytes"])
    assert bench.contenders("cpu", ["lora"]) == (["lorafam", "eager", "peft"], [], [])
    reason = "bitsandbytes not installed"
    left_out = [{"contender": name, "reason": reason} for name in ("eager", "peft")]
    assert bench.contenders("cpu", ["lora", "qlora"]) == (["lorafam"], [], left_out)
    bench.refuse_old_bitsandbytes()
    for name in [name for name in os.environ if name.startswith("PYTEST_XDIST")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(ROOT)
    output = tmp_path / "results.json"
    assert bench.main([*SMALL, "--methods", "qlora", "--json", str(output)]) == 0
    found = json.loads(output.read_text())
    assert (len(rows(found)), found["left_out"]) == (2, left_out)
    shown = capfd.readouterr().out
    assert f"left out: eager: {reason}" in shown
    assert "bitsandbytes 0" not in shown


@pytest.mark.parametrize(("found", "refused"), [("0.49.2", True), ("0.50.0", False), ("1.0", False)])
def test_old_bitsandbytes_is_refused(found: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "version", lambda _: found)
    if not refused:
        bench.refuse_old_bitsandbytes()
        return
    with pytest.raises(SystemExit, match=r"^bench: expected bitsandbytes >= 0.50 on a GPU, got 0.49.2$"):
        bench.refuse_old_bitsandbytes()
