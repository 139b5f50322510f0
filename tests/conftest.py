"""Every test runs with uninitialised memory filled with NaN (integers: their largest value), so that an unwritten
output shows.
"""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["numba", "eager"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs the test once on every backend that this machine has."""
    monkeypatch.setenv("LORAFAM_BACKEND", request.param)
    return request.param
