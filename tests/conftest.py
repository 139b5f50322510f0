"""Every test runs with uninitialised memory filled with NaN (integers: their largest value), so that an unwritten
output shows.
"""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

# cuBLAS gives the same bits each time only with this, which is read when it starts
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# which dense product runs isn't left to a clock
os.environ.setdefault("LORAFAM_DENSE", "platform")
# Triton's interpreter needs a process of its own, and must be chosen before anything imports triton
INTERPRETING = os.environ.get("LORAFAM_BACKEND") == "interpret"
if INTERPRETING:
    os.environ["TRITON_INTERPRET"] = "1"
ON_GPU = torch.cuda.is_available() and not INTERPRETING
CUDA_MODULE = "triton_gpu on cuda"
BACKENDS = ["interpret"] if INTERPRETING else ["numba", "eager", "simulate"] + ["triton"] * ON_GPU
MODULES = ["triton_gpu"] if INTERPRETING else ["numba_cpu", "eager", "triton_gpu"] + [CUDA_MODULE] * ON_GPU


def device() -> str:
    """Where the backend under test takes its tensors: to be asked in a test, not while it is imported."""
    return "cuda" if os.environ.get("LORAFAM_BACKEND") == "triton" else "cpu"


def need_ptxsim() -> None:
    """Skips a test that runs compiled GPU code where ptxsim isn't; where it must be (LORAFAM_NEED_PTXSIM), fails it."""
    folder = os.environ.get("LORAFAM_PTXSIM", "")
    if INTERPRETING:
        pytest.skip("of compiled code only")
    if not (Path(folder) / "ptxsim" / "__init__.py").is_file():
        message = f"LORAFAM_PTXSIM must name the folder that holds ptxsim, got {folder!r}"
        pytest.fail(message) if os.environ.get("LORAFAM_NEED_PTXSIM") else pytest.skip(message)


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    torch.utils.deterministic.fill_uninitialized_memory = True
    # memory is filled in this mode alone; on a GPU PEFT's allocator (kthvalue) shall not raise for it
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    if torch.cuda.is_initialized():
        # what a kernel did wrong is reported by the test that launched it
        torch.cuda.synchronize()


@pytest.fixture(autouse=True)
def _triton_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a launch on a made-up GPU hangs into Triton is gone with the test."""
    if "triton" in sys.modules and not INTERPRETING:
        knobs = sys.modules["triton"].knobs
        monkeypatch.setattr(knobs.runtime, "kernel_load_end_hook", knobs.HookChain(reversed=True))


@pytest.fixture(autouse=True)
def _nothing_is_prepared() -> None:
    """A test may replace what an earlier one's calls were prepared with."""
    prepared = sys.modules.get("lorafam.backends.triton_gpu.prepared")
    if prepared is not None:
        prepared.forget()


@pytest.fixture(autouse=True)
def _cpu_kernels_are_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests take kernels out and put others in: what the check at first use would say of these isn't to be kept."""
    monkeypatch.setattr("lorafam.backends.numba_cpu.self_check._found", lambda kind: None)


def simulated(name: str) -> Any:
    """A parameter that means compiled code run on the CPU, which takes minutes: for `make simulated`."""
    return pytest.param(name, marks=pytest.mark.simulated)


@pytest.fixture(params=[simulated(name) if name == "simulate" else name for name in BACKENDS])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once on every backend that this machine has; on a GPU where its file asks for `device`."""
    if request.param == "simulate":
        need_ptxsim()
    if request.param == "triton" and not hasattr(request.module, "device"):
        pytest.skip("its tensors are on the CPU")
    monkeypatch.setenv("LORAFAM_BACKEND", request.param)
    return request.param


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its tokenizer, as `lorafam finetune` reads it."""
    from tests.finetune.tiny_run import write_model

    folder = write_model(tmp_path_factory.mktemp("models") / "tiny")
    # each run collects garbage twice; without the libraries' objects that takes no time
    gc.freeze()
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text to fine-tune it on."""
    from tests.finetune.tiny_run import write_text

    return write_text(tmp_path_factory.mktemp("texts") / "text.txt")
