from collections.abc import Iterator

import pytest
from lorafam.kernels.launch_table import prefer

from .fake_gpu import ARCHITECTURE


@pytest.fixture(autouse=True)
def _shipped_table() -> Iterator[None]:
    prefer(ARCHITECTURE, {})
    yield
    prefer(ARCHITECTURE, {})
