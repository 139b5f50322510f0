from collections.abc import Iterator

import pytest
from lorafam.kernels.launch_table import prefer
from lorafam.kernels.paths import prefer_paths

from .fake_gpu import ARCHITECTURE


@pytest.fixture(autouse=True)
def _shipped_table() -> Iterator[None]:
    prefer(ARCHITECTURE, {})
    prefer_paths(ARCHITECTURE, {})
    yield
    prefer(ARCHITECTURE, {})
    prefer_paths(ARCHITECTURE, {})
