from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import chosen


@pytest.fixture(scope="session")
def dumped(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every kernel for every architecture in every shipped configuration, and what didn't compile; once for all files.

    Into the folder that LORAFAM_KERNELS names, where it names one.
    """
    from lorafam.inspect.every_kernel import ARCHITECTURES, dump_kernels

    folder = os.environ.get("LORAFAM_KERNELS")
    place = Path(folder) if folder else tmp_path_factory.mktemp("kernels")
    return dump_kernels(place, chosen(ARCHITECTURES))


@pytest.fixture(scope="session")
def rows(dumped: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The kernels of it."""
    from lorafam.inspect.every_kernel import compiled

    return compiled(dumped)
