"""torch's threads and our own: every part once, from several Python threads at once, after a fork, and errors that
reach the caller.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from lorafam import functional as F
from lorafam import quantize_nf4
from lorafam.backends.numba_cpu import threads
from lorafam.backends.numba_cpu.threads import parallel_ranges


@pytest.fixture(autouse=True, params=[1, 2, 5])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, params=["torch's", "our own"])
def _pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "our own":
        monkeypatch.setattr(threads, "openmp", lambda: None)


@pytest.mark.skipif(sys.platform != "linux", reason="torch's wheels for Linux carry GNU's OpenMP")
def test_torch_has_an_openmp_runtime(request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["_pool"] == "torch's":
        assert threads.openmp() is not None


@pytest.mark.parametrize(("count", "grain"), [(0, 1), (1, 1), (7, 3), (1000, 1), (1000, 400), (10, 1000)])
def test_every_element_once(count: int, grain: int) -> None:
    seen = torch.zeros(count, dtype=torch.int64)

    def mark(start: int, stop: int) -> None:
        seen[start:stop] += 1

    parallel_ranges(mark, count, grain)
    assert seen.eq(1).all()


def test_an_error_reaches_the_caller() -> None:
    def fail(start: int, stop: int) -> None:
        if stop == 100:
            raise RuntimeError("the last part")

    with pytest.raises(RuntimeError, match="the last part"):
        parallel_ranges(fail, 100, 1)


def test_several_callers_at_once() -> None:
    weights = [quantize_nf4(torch.randn(300, 257)) for _ in range(4)]
    expected = [weight.dequantize() for weight in weights]
    x = torch.randn(5, 257)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            found = list(pool.map(lambda weight: weight.dequantize(), weights))
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            products = list(pool.map(lambda weight: F.nf4_linear(x, weight), weights))
            for product, dense in zip(products, expected, strict=True):
                torch.testing.assert_close(product, x @ dense.T, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
def test_after_a_fork() -> None:
    weight = quantize_nf4(torch.randn(300, 257))
    expected = weight.dequantize().numpy()
    # torch's own threads don't survive a fork, and it fills large tensors with them
    torch.utils.deterministic.fill_uninitialized_memory = False
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(weight.dequantize().numpy(), expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
