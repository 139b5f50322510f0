"""Modelled times against sums done by hand."""

from __future__ import annotations

import pytest

pytest.importorskip("triton")
from lorafam.bench.kernel_table.cards import Card
from lorafam.bench.kernel_table.times import BYTES_A_WEIGHT, Work, modelled, of_dequantize, of_product

CARD = Card("made up", "sm_90", multiprocessors=10, clock=1e9, bandwidth=1e12, tensor_flops=1e14)
NOTHING = {"total": 0.0, "alu": 0.0, "multiply": 0.0}
CONFIG = {"BLOCK_M": 16, "BLOCK_N": 128, "BLOCK_K": 128}


def work(**parts: float) -> Work:
    return Work(**{"bytes": 0, "weights": 0, "flops": 0, "programs": 10, **parts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "seconds", "done", "per_weight", "wavefronts"),
    [
        ("memory", 2e-6, work(bytes=2e6), NOTHING, None),
        ("tensor cores", 3e-6, work(flops=3e8), NOTHING, None),
        ("issue", 4e-6 / 128, work(weights=10_000), {**NOTHING, "total": 4.0}, None),
        ("half rate", 3e-6 / 64, work(weights=10_000), {"total": 4.0, "alu": 1.0, "multiply": 3.0}, 0.01),
        ("shared memory", 5e-8, work(weights=10_000), {**NOTHING, "total": 4.0}, 0.05),
    ],
)
def test_the_term_that_binds(name: str, seconds: float, done: Work, per_weight: dict, wavefronts: float | None) -> None:
    found = modelled(CARD, done, per_weight, wavefronts)
    assert found.bound_by == name
    assert found.seconds == found.terms[name] == pytest.approx(seconds)
    assert (found.bytes, found.wavefronts) == (done.bytes, None if wavefronts is None else wavefronts * done.weights)


def test_the_fullest_multiprocessor_counts() -> None:
    found = modelled(CARD, work(flops=3e8, programs=11), NOTHING, None)
    assert found.seconds == pytest.approx(3e-6 * 20 / 11)
    assert modelled(CARD, work(bytes=2e6, programs=11), NOTHING, None).seconds == pytest.approx(2e-6)


def test_parts_may_go_to_memory() -> None:
    found = modelled(CARD, work(bytes=2e6, flops=3e8, parts=2e6), NOTHING, None)
    assert (found.seconds, found.bound_by) == (pytest.approx(3e-6), "tensor cores")
    assert found.with_parts == pytest.approx(4e-6)


def test_a_product_that_is_split() -> None:
    """2 tiles on 10 multiprocessors, no more than 10 programs: 8 turns shared among 4."""
    found = of_product(CARD, CONFIG, M=4, N=200, K=1024)
    assert found.programs == 8
    assert found.weights == 256 * 1024
    assert found.flops == 2 * 16 * 256 * 1024
    assert found.bytes == BYTES_A_WEIGHT * 200 * 1024 + 2 * (4 * 1024 + 4 * 200)
    assert found.parts == 2 * 4 * 4 * 4 * 200


def test_a_product_with_tiles_for_all() -> None:
    found = of_product(CARD, CONFIG, M=20, N=128 * 11, K=1024)
    assert found.parts == 0
    assert (found.programs, found.weights) == (22, 2 * 11 * 128 * 1024)
    assert found.bytes == 2 * BYTES_A_WEIGHT * 128 * 11 * 1024 + 2 * (20 * 1024 + 20 * 128 * 11)


def test_dequantize() -> None:
    found = of_dequantize({"BLOCKS": 128, "BLOCK_SIZE": 64}, 256, 512)
    assert found == Work((BYTES_A_WEIGHT + 2) * 256 * 512, 256 * 512, 0, 16)
    assert pytest.approx(0.516, abs=1e-3) == BYTES_A_WEIGHT
