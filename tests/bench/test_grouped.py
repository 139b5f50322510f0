"""The measurement of a group, small: both ways compute the same, and every row of the table is there."""

from __future__ import annotations

import pytest
import torch
from lorafam.bench.grouped import calls, group, main


@pytest.mark.parametrize("direction", ["forward", "train"])
def test_both_ways_compute_the_same(direction: str) -> None:
    together, apart = calls(group([96, 32], 64, 3, "cpu"), direction).values()
    for a, b in zip(together(), apart(), strict=True):
        torch.testing.assert_close(a, b)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--rows", "96", "32", "--columns", "64", "--tokens", "1", "3", "--seconds", "0.01", "--device", "cpu"])
    lines = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.endswith("x |")]
    assert [(a.strip(), b.strip()) for a, b in lines] == [(n, d) for n in "13" for d in ("forward", "train")]
