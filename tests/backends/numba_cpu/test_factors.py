"""The factors' gradients on every kind of processor, by the ratio rule: ranks that aren't whole registers, more tokens
and features than go at once, c, Y, bias.
"""

from __future__ import annotations

import pytest
import torch

from lorafam.backends import eager, numba_cpu
from lorafam.backends.numba_cpu import factors
from lorafam.backends.numba_cpu.processor import Processor
from tests.tolerances import assert_as_good_as_eager

NAMES = ("Q", "dA", "dB", "dm", "dbias")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("M", "rank"), [(1, 16), (3, 5), (100, 16), (100, 33)])
def test_as_good_as_eager(
    M: int, rank: int, dtype: torch.dtype, way: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(factors, "TOKENS", 48)
    N, K, seeds = 1030, 1027, 1024 // (M * rank) + 1
    found: dict[str, list[tuple[torch.Tensor, ...]]] = {"ours": [], "eager": [], "exact": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        # not zero-mean
        grad, x, y = ((torch.randn(M, size) + 0.5).to(dtype) for size in (N, K, N))
        P, B_hat, c, m, bias = (
            torch.randn(M, rank),
            torch.randn(N, rank),
            torch.rand(N),
            torch.rand(N) + 1,
            torch.randn(N),
        )
        args = (grad, x, P, B_hat, c, y, bias, m, None, 0.0, True)
        found["ours"].append(numba_cpu.lora_factors_grad(*args))
        found["eager"].append(eager.lora_factors_grad(*args))
        wide = [value.double() if isinstance(value, torch.Tensor) else value for value in args]
        found["exact"].append(eager.lora_factors_grad(*wide))
    for i, name in enumerate(NAMES):
        ours, theirs, exact = ([result[i] for result in found[who]] for who in found)
        assert_as_good_as_eager(ours, theirs, exact, name=name)


def test_no_tokens(way: Processor) -> None:
    args = (
        torch.empty(0, 5),
        torch.empty(0, 7),
        torch.empty(0, 2),
        torch.ones(5, 2),
        None,
        None,
        None,
        None,
        None,
        0.0,
    )
    Q, dA, dB, dm, dbias = numba_cpu.lora_factors_grad(*args, True)
    assert Q.shape == (0, 2)
    assert dm.shape == (0,)
    for tensor, shape in ((dA, (2, 7)), (dB, (5, 2)), (dbias, (5,))):
        assert torch.equal(tensor, torch.zeros(shape))
