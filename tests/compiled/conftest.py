from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every kernel for every architecture in every shipped configuration, compiled once for all files."""
    from lorafam.backends.triton_gpu.shipped import dump_kernels

    return dump_kernels(tmp_path_factory.mktemp("kernels"))
