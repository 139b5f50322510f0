"""An output head's loss without its logits, on every kind of processor, by the ratio rule; and what a softmax that
comes in blocks could get wrong.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafam import reference
from lorafam.backends import eager
from lorafam.backends.numba_cpu import linear_cross_entropy
from lorafam.backends.numba_cpu.processor import Processor
from tests.tolerances import assert_as_good_as_eager

Tensor = torch.Tensor
module = importlib.import_module(linear_cross_entropy.__module__)
DTYPES = [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.bfloat16, torch.float32)]


def _drawn(seed: int, M: int, K: int, V: int, with_bias: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(M, K, generator=random) / K**0.5, torch.randn(V, K, generator=random)
    bias = 3 * torch.randn(V, generator=random) if with_bias else None
    return x, weight, bias, torch.randint(0, V, (M,), generator=random)


def _exact(x: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor) -> tuple[Tensor, Tensor]:
    wide = x.double(), weight.double(), None if bias is None else bias.double(), target
    return reference.linear_cross_entropy(*wide), reference.linear_cross_entropy_grad(*wide)


@pytest.mark.parametrize(("kind", "dtype"), DTYPES)
@pytest.mark.parametrize(
    ("M", "K", "V", "with_bias"),
    # one register of tokens, two, several passes; shares of several blocks, of one, tails everywhere
    [(5, 96, 9001, True), (40, 130, 3000, False), (300, 64, 777, True), (17, 33, 129, False), (1, 200, 2000, True)],
)
def test_as_good_as_eager(
    M: int, K: int, V: int, with_bias: bool, kind: torch.dtype, dtype: torch.dtype, way: Processor
) -> None:
    ours, theirs, exact = [], [], []
    for seed in range(-(-1024 // M)):
        x, weight, bias, target = _drawn(seed, M, K, V, with_bias)
        x, weight = x.to(dtype), weight.to(kind)
        ours.append(linear_cross_entropy(x, weight, bias, target, True))
        # eager rounds logits to the tokens' dtype
        theirs.append(eager.linear_cross_entropy(x.float(), weight.float(), bias, target, True))
        exact.append(_exact(x, weight, bias, target))
        if seed == 0:
            alone, nothing = linear_cross_entropy(x, weight, bias, target, False)
            assert torch.equal(alone, ours[0][0])
            assert nothing.shape == (0, K)
    for place, name in enumerate(("loss", "dx")):
        columns = [[one[place] for one in each] for each in (ours, theirs, exact)]
        assert_as_good_as_eager(*columns, name=name)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(1, 700),
    st.sampled_from([1e-3, 1.0, 60.0, 3000.0]),
    st.integers(0, 2**31),
)
def test_any_size_and_any_spread(M: int, K: int, V: int, spread: float, seed: int) -> None:
    x, weight, bias, target = _drawn(seed, M, K, V, True)
    assert bias is not None
    loss, dx = linear_cross_entropy(x * spread, weight, bias * spread, target, True)
    exact_loss, exact_dx = _exact(x * spread, weight, bias * spread, target)
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-5, atol=2e-6 * max(1, spread))
    # a logit that is off by a rounding changes its e^l by as many of them as its size
    torch.testing.assert_close(dx.double(), exact_dx, rtol=1e-4, atol=2e-5 * max(1.0, spread))


def test_the_largest_logit_comes_late_or_early(way: Processor) -> None:
    """The shares' sums are scaled anew whenever a larger one comes."""
    x, weight, _, target = _drawn(0, 40, 64, 5000, False)
    rising = torch.linspace(0, 200, 5000)
    for bias in (rising, rising.flip(0)):
        loss, dx = linear_cross_entropy(x, weight, bias, target, True)
        exact_loss, exact_dx = _exact(x, weight, bias, target)
        torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-6, atol=1e-5)
        torch.testing.assert_close(dx.double(), exact_dx, rtol=1e-5, atol=1e-5)


def test_infinities_and_nan_are_torchs(way: Processor) -> None:
    x, weight, _, target = _drawn(0, 6, 32, 3000, False)
    bias = torch.zeros(3000)
    bias[17:2900:3] = -torch.inf
    target[:] = 18
    x[1, 3] = torch.nan
    x[2, 3] = torch.inf
    loss, dx = linear_cross_entropy(x, weight, bias, target, True)
    wanted, gradient = _exact(x, weight, bias, target)
    assert torch.equal(loss.isnan(), wanted.isnan())
    assert loss.isnan().tolist() == [False, True, True, False, False, False]
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=1e-6, equal_nan=True)
    torch.testing.assert_close(dx[3:].double(), gradient[3:], rtol=1e-5, atol=1e-6)
    target[:] = 17
    assert torch.equal(linear_cross_entropy(x[3:], weight, bias, target[3:], False)[0], torch.full((3,), torch.inf))


def test_the_same_bits_on_any_number_of_threads() -> None:
    inputs = _drawn(0, 70, 48, 9000, False)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(linear_cross_entropy(*inputs, True))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(other[0], found[0][0])
        assert torch.equal(other[1], found[0][1])


def test_no_more_memory_than_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the vocabulary: the largest tensor is the shares' sums."""
    sizes = []
    new_empty = Tensor.new_empty
    monkeypatch.setattr(
        Tensor, "new_empty", lambda self, *size, **how: sizes.append(made := new_empty(self, *size, **how)) or made
    )
    linear_cross_entropy(*_drawn(0, 256, 64, 40_000, False), True)
    assert max(made.nbytes for made in sizes) <= max(module._SUMS, module._FEWEST * 4 * 256 * 64)


def test_an_input_that_the_kernel_has_no_code_for_goes_to_eager() -> None:
    x, weight, bias, target = _drawn(0, 9, 32, 600, True)
    for tokens, matrix in ((x.double(), weight.double()), (x, weight.T.contiguous().T), (x[:0], weight)):
        assert not module.suits(tokens, matrix)
        found = linear_cross_entropy(tokens, matrix, bias, target[: tokens.shape[0]], True)
        wanted = eager.linear_cross_entropy(tokens, matrix, bias, target[: tokens.shape[0]], True)
        assert all(map(torch.equal, found, wanted))
