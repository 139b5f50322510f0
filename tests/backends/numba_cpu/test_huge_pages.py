"""Large results lie in huge pages, small ones as torch makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorafam.backends.numba_cpu.huge_pages import new_matrix

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def flags_of(address: int) -> list[str]:
    """What the system says of the memory at an address."""
    here = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            here = start <= address < end
        elif here and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError(f"no memory at {address:#x}")


@pytest.mark.parametrize(("rows", "huge"), [(1024, True), (16, False)])
def test_large_matrices_are_in_huge_pages(rows: int, huge: bool) -> None:
    matrix = new_matrix(torch.empty(0, dtype=torch.bfloat16), rows, 32768)
    assert (matrix.shape, matrix.dtype) == ((rows, 32768), torch.bfloat16)
    if not ENABLED.is_file() or "[never]" in ENABLED.read_text():
        pytest.skip("the system has no huge pages")
    assert ("hg" in flags_of(matrix.data_ptr() + matrix.nbytes // 2)) == huge
