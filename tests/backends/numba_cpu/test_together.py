"""A whole direction in one parallel region: the bits of the ops one after the other, also when a call is started again
with other tensors.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from lorafam.autograd.scaled_factor import scaled
from lorafam.backends import numba_cpu
from lorafam.backends.numba_cpu import dense_choice, dense_few_tokens, parallel, together
from lorafam.backends.numba_cpu.processor import Processor
from lorafam.functional import lora_linear
from lorafam.ops.adapted import Adapted, Needs
from lorafam.ops.by_storage import Storage, dense_storage
from lorafam.weights import quantize_nf4

SCALES = [2.0, 1.0, torch.tensor(1.5, dtype=torch.float64), "by rank"]


def _weight(N: int, K: int, seed: int = 0) -> Storage:
    return quantize_nf4(torch.randn(N, K, generator=torch.Generator().manual_seed(seed))).storage()


def _tensors(M: int, N: int, K: int, r: int, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return {
        "x": torch.randn(M, K).to(dtype),
        "A": torch.randn(r, K),
        "B": torch.randn(N, r),
        "c": torch.rand(N) + 0.5,
        "bias": torch.randn(N),
        "g": torch.randn(M, N).to(dtype),
    }


SEED, DROPPED = torch.tensor(7), 0.3


def _by_ops(
    weight: Storage, t: dict[str, Any], scale: Any, dora: bool, seed: torch.Tensor | None = None
) -> list[torch.Tensor]:
    c, bias = (t["c"], t["bias"]) if dora else (None, None)
    B_hat = scaled(t["B"], scale)
    P = numba_cpu.lora_project(t["x"], t["A"], seed, DROPPED)
    y = numba_cpu.lora_linear(t["x"], *weight, P, B_hat, c, bias)
    ones = torch.ones(B_hat.shape[0]) if dora else None
    Q, dA, dB_hat, dm, dbias = numba_cpu.lora_factors_grad(
        t["g"], t["x"], P, B_hat, c, y if dora else None, bias, ones, seed, DROPPED, dora
    )
    dx = numba_cpu.lora_linear_grad(t["g"], *weight, c, Q, t["A"], None, 0.0)
    return [y, P, dx if seed is None else Q, dA, dB_hat * scale, *([dbias, dm] if dora else [])]


def _together(
    weight: Storage, t: dict[str, Any], scale: Any, dora: bool, seed: torch.Tensor | None = None
) -> list[torch.Tensor]:
    c, bias = (t["c"], t["bias"]) if dora else (None, None)
    y, P = together.forward(t["x"], Adapted(t["A"], t["B"], scale, c, bias, weight), seed, DROPPED)
    return [y, P, *_backward_together(weight, t, scale, dora, seed, y, P)]


def _backward_together(
    weight: Storage,
    t: dict[str, Any],
    scale: Any,
    dora: bool,
    seed: torch.Tensor | None,
    y: torch.Tensor,
    P: torch.Tensor,
) -> list[torch.Tensor]:
    c, bias = (t["c"], t["bias"]) if dora else (None, None)
    adapted = Adapted(t["A"], t["B"], scale, c, bias, weight)
    needs = Needs(x=True, A=True, B=True, scale=False, bias=dora)
    gradients = together.backward(t["g"], t["x"], P, adapted, y if dora else None, seed, DROPPED, needs)
    return [value for value in gradients if value is not None]


def _same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize(("M", "r"), [(1, 8), (3, 5), (7, 16), (20, 16), (130, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_as_the_ops(M: int, r: int, scale: Any, dora: bool, dtype: torch.dtype, way: Processor) -> None:
    weight = _weight(130, 192)
    scale = torch.rand(r) if scale == "by rank" else scale
    # the second one starts the first one's kernels again
    for seed in range(2):
        tensors = _tensors(M, 130, 192, r, dtype, seed)
        assert _same(_together(weight, tensors, scale, dora), _by_ops(weight, tensors, scale, dora))


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("M", [1, 7, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout(M: int, dora: bool, dtype: torch.dtype) -> None:
    weight = _weight(130, 192)
    for number in range(2):
        tensors = _tensors(M, 130, 192, 8, dtype, number)
        ours, theirs = (one(weight, tensors, 2.0, dora, SEED) for one in (_together, _by_ops))
        assert _same(ours, theirs)


@pytest.mark.parametrize("choice", ["own", "platform"])
@pytest.mark.parametrize("dora", [False, True])
# few tokens; tiles; dx's limit is another than the forward's
@pytest.mark.parametrize("M", [1, 5, 12, 32, 130])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dense_weight(M: int, dora: bool, dtype: torch.dtype, choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFAM_DENSE", choice)
    monkeypatch.setattr(dense_choice, "_LEAST", 0)
    weight = dense_storage(torch.randn(130, 192, generator=torch.Generator().manual_seed(1)).to(dtype))
    # one after the other: kernels that are started again must be of the same kind of call
    for number, seed in enumerate((None, None, SEED, SEED, None)):
        t = _tensors(M, 130, 192, 8, dtype, number)
        c, bias = (t["c"], t["bias"]) if dora else (None, None)
        adapted = Adapted(t["A"], t["B"], 2.0, c, bias, weight)
        forward = together.suits_forward(t["x"], adapted)
        few = dense_few_tokens.suits(weight.data, dtype, M)
        few_back = dense_few_tokens.suits(weight.data, dtype, M, backward=True)
        assert forward == (few or choice == "own")
        assert together.suits(t["x"], adapted)
        theirs = _by_ops(weight, t, 2.0, dora, seed)
        if forward:
            assert _same(list(together.forward(t["x"], adapted, seed, DROPPED)), theirs[:2])
        ours = _backward_together(weight, t, 2.0, dora, seed, theirs[0], theirs[1])
        if seed is None and choice == "platform" and not few_back:
            # Q in the place of dx, which the op forms of it
            exact = (t["g"].float() * (1 if c is None else c)) @ (2.0 * t["B"])
            torch.testing.assert_close(ours[0], exact, rtol=1e-4, atol=1e-3)
            ours, theirs = ours[1:], theirs[:2] + theirs[3:]
        assert _same(ours, theirs[2:])


@pytest.mark.parametrize("M", [1, 12, 200])
def test_layers_over_a_dense_weight(M: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one way and the other: LORAFAM_BACKEND's choice isn't one of results."""
    monkeypatch.setenv("LORAFAM_DENSE", "own")
    monkeypatch.setattr(dense_choice, "_LEAST", 0)
    found = []
    for whole in (True, False):
        if not whole:
            monkeypatch.setattr(together, "suits", lambda *_: False)
        t = _tensors(M, 96, 64, 8, torch.float32, 0)
        leaves = [t[name].clone().requires_grad_() for name in ("x", "A", "B")]
        weight = torch.randn(96, 64, generator=torch.Generator().manual_seed(1))
        y = lora_linear(leaves[0], weight, leaves[1], leaves[2], 2.0, t["bias"])
        found.append([y.detach(), *torch.autograd.grad(y, leaves, t["g"])])
    assert _same(*found)


def test_many_tokens(way: Processor) -> None:
    weight, tensors = _weight(64, 128), _tensors(1100, 64, 128, 8, torch.float32, 0)
    for _ in range(2):
        assert _same(_together(weight, tensors, 2.0, True), _by_ops(weight, tensors, 2.0, True))


def test_other_weights_numbers_of_threads_and_larger_buffers() -> None:
    small = _weight(64, 128), _tensors(9, 64, 128, 8, torch.float32, 0)
    other = _weight(64, 128, seed=5), _tensors(9, 64, 128, 8, torch.float32, 1)
    large = _weight(256, 512), _tensors(600, 256, 512, 40, torch.float32, 2)
    threads = torch.get_num_threads()
    try:
        for count in (2, 1, 3, 2):
            torch.set_num_threads(count)
            for weight, tensors in (small, other, large, small):
                assert _same(_together(weight, tensors, 2.0, False), _by_ops(weight, tensors, 2.0, False)), count
    finally:
        torch.set_num_threads(threads)


def test_tensors_that_share_memory_are_not_taken_for_one_another() -> None:
    weight = _weight(128, 128)
    memory = torch.randn(8, 128)
    first = _tensors(8, 128, 128, 8, torch.float32, 0) | {"x": memory, "A": memory}
    second = _tensors(8, 128, 128, 8, torch.float32, 1)
    for tensors in (first, second, first):
        assert _same(_together(weight, tensors, 2.0, False), _by_ops(weight, tensors, 2.0, False))


def test_two_python_threads_at_once() -> None:
    cases = [(_weight(64, 128, seed=i), _tensors(17, 64, 128, 8, torch.float32, i)) for i in range(2)]
    expected = [_by_ops(weight, tensors, 2.0, False) for weight, tensors in cases]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not _same(_together(*cases[i], 2.0, False), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_kernels_without_openmp_run_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "usable_openmp", lambda: None)
    monkeypatch.setattr(parallel, "_local", parallel._Local())
    weight, tensors = _weight(64, 128), _tensors(20, 64, 128, 8, torch.float32, 0)
    assert _same(_together(weight, tensors, 2.0, False), _by_ops(weight, tensors, 2.0, False))


def test_a_region_that_fails_runs_nothing_and_is_closed() -> None:
    def fail() -> None:
        with parallel.region():
            parallel.run(0, (), 1)
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        fail()
    weight, tensors = _weight(64, 128), _tensors(20, 64, 128, 8, torch.float32, 0)
    assert _same(_together(weight, tensors, 2.0, False), _by_ops(weight, tensors, 2.0, False))


def test_a_region_in_a_region_is_refused() -> None:
    with parallel.region(), pytest.raises(RuntimeError, match="expected none to be open"):
        parallel.region().__enter__()
