"""`lorafam finetune` as a user runs it."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lorafam.cli.main import app
from lorafam.finetune.run_log import read_log

SMALL = ["--sequence-length", "16", "--held-out-tokens", "64", "--rank", "2", "--learning-rate", "1e-2"]


def arguments(model: Path, text: Path, output: Path, *more: str) -> list[str]:
    return ["finetune", "--model", str(model), "--text", str(text), "--output", str(output), *SMALL, *more]


def adapter(output: Path) -> bytes:
    return (output / "adapter" / "adapter_model.safetensors").read_bytes()


def test_flags_and_file_give_the_same_run(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    flags = ["--method", "dora", "--quantize", "nf4", "--no-double-quant", "--target-modules", "q_proj,down_proj"]
    done = CliRunner().invoke(app, arguments(model_folder, text_file, tmp_path / "flags", "--steps", "4", *flags))
    assert done.exit_code == 0, done.output
    for name in (
        "held-out loss before",
        "held-out loss after",
        "paired by chunk",
        "trainable parameters",
        "peak memory",
    ):
        assert name in done.stdout
    assert "step 4/4" in done.stderr
    values = yaml.safe_load((tmp_path / "flags" / "run.yaml").read_text())
    assert values["target_modules"] == ["q_proj", "down_proj"]
    assert (values["method"], values["quantize"], values["double_quant"]) == ("dora", "nf4", False)
    (tmp_path / "copy.yaml").write_text(yaml.safe_dump({**values, "steps": 100, "output": "elsewhere"}))
    again = ["--config", str(tmp_path / "copy.yaml"), "--output", str(tmp_path / "file"), "--steps", "4"]
    assert CliRunner().invoke(app, ["finetune", *again]).exit_code == 0
    assert adapter(tmp_path / "file") == adapter(tmp_path / "flags")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "no/such/folder"], "model: no such folder: no/such/folder"),
        (["--model", "missing.gguf"], "model: no such file: missing.gguf"),
        (["--text", "missing.txt"], "text: no such file: missing.txt"),
        (["--rank", "0"], "rank: expected a positive integer, got 0"),
        (["--rank", "-3"], "rank: expected a positive integer, got -3"),
        (["--dropout", "1.0"], "dropout: expected a probability in [0, 1), got 1.0"),
        (["--dropout", "-0.5"], "dropout: expected a probability in [0, 1), got -0.5"),
        (["--target-modules", "q_prj"], "target_modules: no module is called 'q_prj'; the model has q_proj"),
        (["--method", "lore"], "method: expected one of 'adalora', 'dora', 'lora', 'vera', got 'lore'"),
        (["--quantize", "int8"], "quantize: expected one of 'nf4', 'fp4', None, got 'int8'"),
        (["--target-rank", "3"], "target_rank: the method 'lora' allocates no ranks"),
        (["--config", "missing.yaml"], "config: no such file: missing.yaml"),
        (["--sequence-length", "5000"], "text: "),
        (["--resume"], "output: "),
    ],
)
def test_bad_input_is_one_line(
    more: list[str], message: str, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """Exit code 2, one line on stderr that names what was wrong, no adapter and no progress before it but loading."""
    done = CliRunner().invoke(app, arguments(model_folder, text_file, tmp_path / "out", *more))
    assert done.exit_code == 2, done.output
    lines = [line for line in done.stderr.splitlines() if not line.startswith("loading ")]
    assert len(lines) == 1
    assert lines[0].startswith(f"lorafam finetune: {message}")
    assert done.stdout == ""
    assert not (tmp_path / "out" / "adapter").exists()


def test_wrong_key_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: m\ntext: t\noutput: o\nlearning_rat: 1\n")
    done = CliRunner().invoke(app, ["finetune", "--config", str(tmp_path / "run.yaml")])
    assert done.exit_code == 2
    assert done.stderr == "lorafam finetune: learning_rat: no such setting; did you mean learning_rate?\n"


def start(*more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "from lorafam.cli.main import app; app()", *more]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # a shell has what it runs in the background ignore SIGINT
    return subprocess.Popen(command, text=True, preexec_fn=_heed_interrupts, **pipes)


def _heed_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# so many that a busy machine still has some to go when the signal comes
KILLED_STEPS = 160
KILLED = ["--method", "adalora", "--quantize", "nf4", "--dropout", "0.2", "--save-every", "2"]
KILLED += ["--steps", str(KILLED_STEPS)]


@pytest.fixture(scope="module")
def uninterrupted(model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    output = tmp_path_factory.mktemp("whole")
    done = CliRunner().invoke(app, arguments(model_folder, text_file, output, *KILLED))
    assert done.exit_code == 0, done.output
    return adapter(output)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_killed_run_goes_on_to_the_same_result(
    number: signal.Signals, model_folder: Path, text_file: Path, tmp_path: Path, uninterrupted: bytes
) -> None:
    """Killed at some moment after the first checkpoint, which is often while the next is being written."""
    output = tmp_path / "out"
    process = start(*arguments(model_folder, text_file, output, *KILLED))
    wait_for(output / "checkpoint-2", process)
    time.sleep(random.random() / 5)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert not (output / "adapter").exists()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        resume = f"lorafam finetune --resume --output {output}"
        assert stderr.splitlines()[-1] == f"lorafam finetune: interrupted; go on with: {resume}"
        assert "Traceback" not in stderr
        assert not list(output.glob(".*"))
    resumed = CliRunner().invoke(app, ["finetune", "--resume", "--output", str(output)])
    assert resumed.exit_code == 0, resumed.output
    assert "resuming from checkpoint-" in resumed.stderr
    assert adapter(output) == uninterrupted
    assert [record["step"] for record in read_log(output / "log.jsonl")] == list(range(KILLED_STEPS + 1))


def test_divergence_is_one_line(model_folder: Path, text_file: Path, tmp_path: Path) -> None:
    more = ["--learning-rate", "1e30", "--schedule", "constant", "--steps", "5"]
    done = CliRunner().invoke(app, arguments(model_folder, text_file, tmp_path / "out", *more))
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "lorafam finetune: loss: not finite at step 2; try a lower learning_rate"
