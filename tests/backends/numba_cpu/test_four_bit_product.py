"""Both products with a 4-bit weight, on every kind of processor, by the ratio rule: few tokens and many, rows of whole
blocks and not, every block size, inputs that aren't zero-mean, strided, empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.backends import eager
from lorafam.backends.numba_cpu import few_tokens, four_bit_product, tiles_backward, tiles_forward
from lorafam.backends.numba_cpu.four_bit import describe
from lorafam.backends.numba_cpu.processor import Processor
from tests.tolerances import MIN_ELEMENTS, assert_as_good_as_eager

Tensor = torch.Tensor
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# whole blocks; whole groups in part of a block; nothing whole; odd
SHAPES = [(96, 256), (70, 96), (72, 130), (33, 257)]


def pooled(case: Callable[[int], tuple[Tensor, Tensor, Tensor]], elements: int, name: str) -> None:
    """Holds (ours, eager, exact) of as many seeds as the rule needs."""
    seeds = range(max(1, math.ceil(MIN_ELEMENTS / max(1, elements))))
    assert_as_good_as_eager(*(list(values) for values in zip(*map(case, seeds), strict=True)), name=name)


def forward_case(
    N: int,
    K: int,
    M: int,
    dtype: torch.dtype,
    block: int = 64,
    double: bool = True,
    rank: int = 18,
    extras: bool = True,
    mean: float = 0.5,
    quant_type: str = "nf4",
) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(1000 * seed + N + K + M)
        storage = quantize_nf4(torch.randn(N, K) * K**-0.5, block, double, quant_type=quant_type).storage()
        weight = eager.dequantize_4bit(*storage, torch.float32)
        # not zero-mean, and strided
        x = (torch.randn(K, M) + mean).to(dtype).T
        P, B_hat = torch.randn(M, rank), torch.randn(N, rank) * 0.1
        c, bias = (torch.rand(N) + 0.5, torch.randn(N)) if extras else (None, None)
        if not extras:
            P = B_hat = None
        ours = four_bit_product.forward(x, storage, P, B_hat, c, bias)
        # the weight in the tokens' dtype, as PEFT has it
        theirs = (x @ weight.to(dtype).T).float()
        if extras:
            theirs = (theirs + P @ B_hat.T) * c + bias
        theirs = theirs.to(dtype)
        exact = x.double() @ weight.double().T
        if extras:
            exact = (exact + P.double() @ B_hat.double().T) * c.double() + bias.double()
        return ours, theirs, exact

    return case


def backward_case(
    N: int,
    K: int,
    M: int,
    dtype: torch.dtype,
    block: int = 64,
    double: bool = True,
    rank: int = 18,
    start: bool = False,
) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
    def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(1000 * seed + N + K + M)
        storage = quantize_nf4(torch.randn(N, K) * N**-0.5, block, double).storage()
        weight = eager.dequantize_4bit(*storage, torch.float32)
        grad = (torch.randn(N, M) + 0.5).to(dtype).T
        c, Q, A = torch.rand(N) + 0.5, torch.randn(M, rank), torch.randn(rank, K) * 0.1
        begun = torch.randn(M, K) if start else None
        ours = four_bit_product.backward(grad, storage, c, Q, A, begun)
        theirs = (((grad * c).to(dtype) @ weight.to(dtype)).float() + Q @ A).to(dtype)
        exact = (grad.double() * c.double()) @ weight.double() + Q.double() @ A.double()
        if begun is not None:
            theirs, exact = (theirs + begun).to(dtype), exact + begun.double()
        return ours, theirs, exact

    return case


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", [1, 3, 8, 9, 17, 40])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_forward(N: int, K: int, M: int, dtype: torch.dtype, way: Processor) -> None:
    pooled(forward_case(N, K, M, dtype), M * N, f"y {N}x{K} M={M}")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("M", [1, 2, 4, 5, 17, 40])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_backward(N: int, K: int, M: int, dtype: torch.dtype, way: Processor) -> None:
    pooled(backward_case(N, K, M, dtype), M * K, f"dx {N}x{K} M={M}")


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block", [32, 64, 128, 256, 512, 1024, 2048, 4096])
@pytest.mark.parametrize("M", [2, 20])
def test_block_sizes(M: int, block: int, double: bool, dtype: torch.dtype, way: Processor) -> None:
    pooled(forward_case(66, 1024, M, dtype, block, double), M * 66, "y")
    pooled(backward_case(66, 1024, M, dtype, block, double), M * 1024, "dx")


@pytest.mark.parametrize("rank", [0, 1, 7, 16, 200])
@pytest.mark.parametrize("M", [1, 3, 33])
def test_ranks(M: int, rank: int, way: Processor) -> None:
    pooled(forward_case(96, 256, M, torch.float32, rank=rank), M * 96, "y")
    pooled(backward_case(96, 256, M, torch.float32, rank=rank), M * 256, "dx")


@pytest.mark.parametrize("M", [2, 40])
def test_alone(M: int, way: Processor) -> None:
    """Neither low-rank part nor scale nor bias."""
    pooled(forward_case(96, 256, M, torch.bfloat16, extras=False), M * 96, "y")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("M", [1, 3, 8, 40])
def test_tokens_far_from_zero_mean(M: int, quant_type: str, double: bool, way: Processor) -> None:
    """Errors of rounded levels don't add up: they all have one sign if levels are rounded as they are."""
    case = forward_case(128, 1024, M, torch.bfloat16, double=double, extras=False, mean=2.0, quant_type=quant_type)
    pooled(case, M * 128, "y")


@pytest.mark.parametrize("M", [2, 40])
def test_start(M: int, way: Processor) -> None:
    pooled(backward_case(96, 256, M, torch.float32, start=True), M * 256, "dx")


def test_more_tokens_than_at_once(monkeypatch: pytest.MonkeyPatch, way: Processor) -> None:
    for tiles in (tiles_forward, tiles_backward):
        monkeypatch.setattr(tiles, "TOKENS", 48)
    pooled(forward_case(96, 256, 100, torch.bfloat16), 9600, "y")
    pooled(backward_case(96, 256, 100, torch.float32, start=True), 25600, "dx")


def test_long_sums(way: Processor) -> None:
    pooled(forward_case(64, 8192, 17, torch.float32), 1088, "y")
    pooled(backward_case(8192, 64, 17, torch.float32), 1088, "dx")


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_no_tokens(dtype: torch.dtype) -> None:
    storage = quantize_nf4(torch.randn(64, 128)).storage()
    y = four_bit_product.forward(torch.randn(0, 128).to(dtype), storage, None, None, None, None)
    assert (y.shape, y.dtype) == ((0, 64), dtype)
    dx = four_bit_product.backward(torch.randn(0, 64).to(dtype), storage, None, None, None, None)
    assert (dx.shape, dx.dtype) == ((0, 128), dtype)


@pytest.mark.parametrize("M", [1, 20])
def test_fp64(M: int) -> None:
    storage = quantize_nf4(torch.randn(70, 130)).storage()
    weight = eager.dequantize_4bit(*storage, torch.float64)
    x, grad, c = torch.randn(M, 130).double(), torch.randn(M, 70).double(), torch.rand(70).double()
    y = four_bit_product.forward(x, storage, None, None, c, None)
    torch.testing.assert_close(y, x @ weight.T * c)
    dx = four_bit_product.backward(grad, storage, c, None, None, x)
    torch.testing.assert_close(dx, (grad * c) @ weight + x)


def test_same_bits_for_any_number_of_threads(way: Processor) -> None:
    storage = quantize_nf4(torch.randn(300, 256)).storage()
    before = torch.get_num_threads()
    found = []
    for M in (1, 30):
        x, grad = torch.randn(M, 256), torch.randn(M, 300)
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(
                (
                    four_bit_product.forward(x, storage, None, None, None, None),
                    four_bit_product.backward(grad, storage, None, None, None, None),
                )
            )
        torch.set_num_threads(before)
        assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(found[0], one, strict=True))
        found.clear()


def test_which_kernel_runs(way: Processor) -> None:
    """Few tokens are decoded in registers where rows are whole blocks."""
    assert few_tokens.suits(describe(quantize_nf4(torch.randn(64, 128)).storage()), way)
    assert not few_tokens.suits(describe(quantize_nf4(torch.randn(64, 96)).storage()), way)
    assert not few_tokens.suits(describe(quantize_nf4(torch.randn(3, 128)).storage()), way)


def test_nan_and_infinity_stay(way: Processor) -> None:
    storage = quantize_nf4(torch.randn(64, 128)).storage()
    for M in (1, 16):
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(M, 128).to(dtype)
            x[0, 3] = torch.nan
            y = four_bit_product.forward(x, storage, None, None, None, None)
            assert y[0].isnan().all()
            assert y[1:].isfinite().all()


def test_what_is_planned_runs(way: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """`plan` names the kernel that `forward` takes."""
    ran = []
    for path, module in (("registers", few_tokens), ("tiles", tiles_forward)):
        monkeypatch.setattr(module, "forward", lambda *args, path=path: ran.append(path))
    monkeypatch.setattr(four_bit_product, "panels", lambda *args: ran.append("panels") or [])
    planned = []
    for columns in (96, 256):
        storage = quantize_nf4(torch.randn(64, columns)).storage()
        for tokens in (1, 8, 9):
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                planned.append(four_bit_product.plan(storage, tokens, dtype).path)
                four_bit_product.forward(torch.zeros(tokens, columns, dtype=dtype), storage, None, None, None, None)
    assert ran == planned
    assert set(ran) == {"registers", "tiles", "panels"}
