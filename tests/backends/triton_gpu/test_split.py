from __future__ import annotations

import pytest

pytest.importorskip("triton")
from lorafam.backends.triton_gpu.split import LARGEST_TILE, share_of


@pytest.mark.parametrize(
    ("multiprocessors", "tiles", "share"),
    [
        (16, 2, 128),  # 8 turns, more programs than turns; small tiles: two programs a multiprocessor
        (16, 8, 256),  # 4 programs a tile
        (16, 11, 512),  # 2
        (16, 12, 512),
        (16, 17, 1024),  # 1: not split
        (16, 64, 1024),
    ],
)
def test_the_device_is_filled_once(multiprocessors: int, tiles: int, share: int) -> None:
    assert share_of(multiprocessors, range_=1024, turn=128, tiles=tiles, size=128 * 16) == share


@pytest.mark.parametrize(
    ("multiprocessors", "range_", "tiles", "tokens", "share"),
    [
        (132, 4096, 32, 16, 1024),  # one program a multiprocessor instead of two
        (108, 4096, 32, 16, 1536),  # 96 programs, not 128: twenty multiprocessors would have two
        (132, 4096, 8, 16, 256),  # few tiles: the device is filled at the price of sectors that others read too
        (170, 4096, 32, 16, 1024),  # 128 programs instead of 160: waiting for memory anyway
        (170, 4096, 32, 64, 896),  # with large tiles the products would take longer
        (132, 4096, 112, 16, 2048),
        (132, 4096, 256, 16, 4096),
        (132, 14336, 32, 16, 2048),
        (108, 14336, 32, 16, 2560),  # half spans
        (16, 512, 2, 16, 128),  # the range is shorter than a span
    ],
)
def test_spans_are_whole_where_the_device_is_filled_anyway(
    multiprocessors: int, range_: int, tiles: int, tokens: int, share: int
) -> None:
    found = share_of(multiprocessors, range_=range_, turn=128, tiles=tiles, size=128 * tokens, span=1024)
    assert found == share


def test_what_cannot_be_split() -> None:
    assert share_of(16, range_=1000, turn=128, tiles=2, size=LARGEST_TILE + 1) == 1024
    assert share_of(16, range_=100, turn=128, tiles=2, size=128) == 128
