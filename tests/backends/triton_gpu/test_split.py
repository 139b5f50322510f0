from __future__ import annotations

import pytest

pytest.importorskip("triton")
from lorafam.backends.triton_gpu.split import LARGEST_TILE, share_of


@pytest.mark.parametrize(
    ("programs", "tiles", "share"),
    [
        (32, 2, 128),  # 8 turns, more programs than turns
        (32, 8, 256),  # 4 programs a tile
        (32, 11, 512),  # 2
        (32, 12, 512),
        (32, 17, 1024),  # 1: not split
        (32, 64, 1024),
    ],
)
def test_the_device_is_filled_once(programs: int, tiles: int, share: int) -> None:
    assert share_of(programs, range_=1024, turn=128, tiles=tiles, size=128 * 16) == share


def test_what_cannot_be_split() -> None:
    assert share_of(32, range_=1000, turn=128, tiles=2, size=LARGEST_TILE + 1) == 1024
    assert share_of(32, range_=100, turn=128, tiles=2, size=128) == 128
