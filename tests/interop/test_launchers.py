"""docs/several_processes.md's lines, as they stand there: torchrun loses a process and ends, `accelerate launch` goes
on from the last complete checkpoint.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from peft import PeftModel
from safetensors.torch import load_file

from tests.interop.several import small_llama
from tests.interop.test_trainers import sentences, tokenizer

ROOT = Path(__file__).parents[2]
LIMIT = 120.0
MODULES = {"torchrun": "torch.distributed.run", "accelerate launch": "accelerate.commands.launch"}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    names = {name: folder / name.lower() for name in ("MODEL", "TEXT", "OUTPUT")}
    small_llama().save_pretrained(names["MODEL"])
    tokenizer().save_pretrained(names["MODEL"])
    names["TEXT"].write_text(" ".join(sentences(200)))
    return names


def start(launcher: str, inputs: dict[str, Path], *more: str) -> subprocess.Popen[str]:
    page = (ROOT / "docs" / "several_processes.md").read_text()
    line = next(line.strip() for line in page.splitlines() if line.strip().startswith(launcher))
    for name, path in inputs.items():
        line = line.replace(name, str(path))
    port = {"torchrun": "--master-port", "accelerate launch": "--main_process_port"}[launcher]
    command = [
        sys.executable,
        "-m",
        MODULES[launcher],
        port,
        str(_free_port()),
        *shlex.split(line.removeprefix(launcher)),
    ]
    flags = "--use_cpu --ddp_backend gloo --report_to none --save_steps 1 --disable_tqdm true"
    return subprocess.Popen(
        [*command, *flags.split(), *more],
        cwd=ROOT,
        # transformers before 5.18 resumes several processes on CPUs only then
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_TORCH_DEVICE": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def wait_for(found: Callable[[], Any], launched: subprocess.Popen[str]) -> Any:
    end = time.monotonic() + LIMIT
    while not (result := found()):
        assert launched.poll() is None, launched.communicate()[0]
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.05)
    return result


def complete(output: Path) -> list[Path]:
    """Trainer's complete checkpoints, in order."""
    states = output.glob("checkpoint-*/trainer_state.json")
    return sorted((path.parent for path in states), key=lambda path: int(path.name.split("-")[1]))


def process_of(rank: int, launched: subprocess.Popen[str]) -> psutil.Process:
    return next(child for child in psutil.Process(launched.pid).children() if child.environ().get("RANK") == str(rank))


@pytest.fixture
def launched() -> Iterator[list[subprocess.Popen[str]]]:
    """What is started ends with the test."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_a_killed_process_ends_the_run_and_the_last_checkpoint_goes_on(
    inputs: dict[str, Path], launched: list[subprocess.Popen[str]]
) -> None:
    run = start("torchrun", inputs)
    launched.append(run)
    wait_for(lambda: len(complete(inputs["OUTPUT"])) >= 2, run)
    process_of(1, run).kill()
    said = run.communicate(timeout=60)[0]
    assert run.returncode != 0
    assert "rank      : 1 (local_rank: 1)" in said
    assert "Signal 9 (SIGKILL)" in said

    last = complete(inputs["OUTPUT"])[-1]
    state = json.loads((last / "trainer_state.json").read_text())
    step = state["global_step"]
    assert PeftModel.from_pretrained(small_llama(), last)
    again = start("accelerate launch", inputs, "--resume_from_checkpoint", str(last), "--max_steps", str(step + 2))
    launched.append(again)
    said = again.communicate(timeout=LIMIT)[0]
    assert again.returncode == 0, said
    state = json.loads((complete(inputs["OUTPUT"])[-1] / "trainer_state.json").read_text())
    assert state["global_step"] == step + 2
    assert (last.parent / f"checkpoint-{step + 2}" / "rng_state_1.pth").is_file()
    assert load_file(inputs["OUTPUT"] / "adapter_model.safetensors")
