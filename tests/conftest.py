"""Every test runs with uninitialised memory filled with NaN (integers: their largest value), so that an unwritten
output shows.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Triton's interpreter needs a process of its own, and must be chosen before anything imports triton
INTERPRETING = os.environ.get("LORAFAM_BACKEND") == "interpret"
if INTERPRETING:
    os.environ["TRITON_INTERPRET"] = "1"
BACKENDS = ["interpret"] if INTERPRETING else ["numba", "eager", "simulate"]
MODULES = ["triton_gpu"] if INTERPRETING else ["numba_cpu", "eager", "triton_gpu"]


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
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once on every backend that this machine has."""
    if request.param == "simulate":
        need_ptxsim()
    monkeypatch.setenv("LORAFAM_BACKEND", request.param)
    return request.param
