"""Both products with a dense weight, on every kind of processor, by the ratio rule: few tokens and many, sizes that
aren't whole registers, inputs that aren't zero-mean, strided, unaligned, empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lorafam import explain
from lorafam.backends.numba_cpu import dense_few_tokens, dense_product
from lorafam.backends.numba_cpu.processor import Processor
from tests.tolerances import MIN_ELEMENTS, assert_as_good_as_eager

Tensor = torch.Tensor
Case = Callable[[int], tuple[Tensor, Tensor, Tensor]]
# of weight and tokens
DTYPES = [(torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.bfloat16, torch.float32), (torch.float16,) * 2]
# whole registers; nothing whole; fewer columns than a register; fewer rows than are taken at once; parts of 256 rows
SHAPES = [(96, 256), (33, 261), (40, 3), (2, 100), (2100, 70)]


def pooled(case: Case, elements: int, name: str) -> None:
    """Holds (ours, eager, exact) of as many seeds as the rule needs."""
    seeds = range(max(1, math.ceil(MIN_ELEMENTS / max(1, elements))))
    assert_as_good_as_eager(*(list(values) for values in zip(*map(case, seeds), strict=True)), name=name)


def forward_case(
    N: int,
    K: int,
    M: int,
    dtypes: tuple[torch.dtype, torch.dtype] = DTYPES[0],
    rank: int = 18,
    extras: bool = True,
    laid_out: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Case:
    def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(1000 * seed + N + K + M)
        weight = laid_out((torch.randn(N, K) * K**-0.5).to(dtypes[0]))
        # not zero-mean, and strided
        x = (torch.randn(K, M) + 0.5).to(dtypes[1]).T
        P, B_hat = torch.randn(M, rank), torch.randn(N, rank) * 0.1
        c, bias = torch.rand(N) + 0.5, torch.randn(N)
        theirs, exact = (x @ weight.to(x.dtype).T).float(), x.double() @ weight.double().T
        if not extras:
            return dense_product.forward(x, weight, None, None, None, None), theirs.to(x.dtype), exact
        ours = dense_product.forward(x, weight, P, B_hat, c, bias)
        theirs = ((theirs + P @ B_hat.T) * c + bias).to(x.dtype)
        exact = (exact + P.double() @ B_hat.double().T) * c.double() + bias.double()
        return ours, theirs, exact

    return case


def backward_case(
    N: int,
    K: int,
    M: int,
    dtypes: tuple[torch.dtype, torch.dtype] = DTYPES[0],
    rank: int = 18,
    start: bool = False,
    scaled: bool = True,
    laid_out: Callable[[Tensor], Tensor] = lambda weight: weight,
) -> Case:
    def case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(1000 * seed + N + K + M)
        weight = laid_out((torch.randn(N, K) * N**-0.5).to(dtypes[0]))
        grad = (torch.randn(N, M) + 0.5).to(dtypes[1]).T
        c, Q, A = torch.rand(N) + 0.5, torch.randn(M, rank), torch.randn(rank, K) * 0.1
        if not scaled:
            c = torch.ones(N)
        begun = torch.randn(M, K) if start else None
        ours = dense_product.backward(grad, weight, c if scaled else None, Q, A, begun)
        theirs = (((grad * c).to(grad.dtype) @ weight.to(grad.dtype)).float() + Q @ A).to(grad.dtype)
        exact = (grad.double() * c.double()) @ weight.double() + Q.double() @ A.double()
        if begun is not None:
            theirs, exact = (theirs + begun).to(grad.dtype), exact + begun.double()
        return ours, theirs, exact

    return case


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("M", [1, 3, 11, 40])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_forward(N: int, K: int, M: int, dtypes: tuple[torch.dtype, torch.dtype], way: Processor) -> None:
    pooled(forward_case(N, K, M, dtypes), M * N, f"y {N}x{K} M={M}")


@pytest.mark.parametrize("dtypes", DTYPES)
@pytest.mark.parametrize("M", [1, 3, 11, 40])
@pytest.mark.parametrize(("N", "K"), SHAPES)
def test_backward(
    N: int,
    K: int,
    M: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    way: Processor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # as if the weight were large
    monkeypatch.setattr(dense_few_tokens, "_LARGE", 0)
    pooled(backward_case(N, K, M, dtypes), M * K, f"dx {N}x{K} M={M}")


@pytest.mark.parametrize("rank", [0, 1, 7, 16, 200])
@pytest.mark.parametrize("M", [1, 3, 33])
def test_ranks(M: int, rank: int, way: Processor) -> None:
    pooled(forward_case(96, 256, M, rank=rank), M * 96, "y")
    pooled(backward_case(96, 256, M, rank=rank), M * 256, "dx")


@pytest.mark.parametrize("dtypes", DTYPES[:2])
@pytest.mark.parametrize("M", [2, 40])
def test_alone(M: int, dtypes: tuple[torch.dtype, torch.dtype], way: Processor) -> None:
    """Neither low-rank part nor scale nor bias."""
    pooled(forward_case(96, 256, M, dtypes, extras=False), M * 96, "y")
    pooled(backward_case(96, 256, M, dtypes, rank=0, scaled=False), M * 256, "dx")


@pytest.mark.parametrize("M", [2, 40])
def test_start(M: int, way: Processor) -> None:
    pooled(backward_case(96, 261, M, start=True), M * 261, "dx")


@pytest.mark.parametrize("dtypes", DTYPES[:2])
def test_long_sums(dtypes: tuple[torch.dtype, torch.dtype], way: Processor) -> None:
    pooled(forward_case(256, 8192, 4, dtypes), 1024, "y")
    pooled(backward_case(8192, 256, 4, dtypes), 1024, "dx")


def unaligned(weight: Tensor) -> Tensor:
    """The same values from an odd byte on."""
    values = weight.contiguous().flatten().view(torch.uint8)
    memory = torch.empty(values.numel() + 1, dtype=torch.uint8)
    memory[1:] = values
    return torch.frombuffer(memory.numpy(), dtype=weight.dtype, offset=1).view(weight.shape)


def transposed(weight: Tensor) -> Tensor:
    return weight.T.contiguous().T


@pytest.mark.parametrize("laid_out", [unaligned, transposed])
@pytest.mark.parametrize("dtypes", DTYPES[:2])
def test_layouts(dtypes: tuple[torch.dtype, torch.dtype], laid_out: Callable[[Tensor], Tensor], way: Processor) -> None:
    pooled(forward_case(70, 260, 3, dtypes, laid_out=laid_out), 210, "y")
    pooled(backward_case(70, 260, 3, dtypes, laid_out=laid_out), 780, "dx")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("M", "N", "K"), [(0, 64, 128), (3, 0, 128), (3, 64, 0)])
def test_empty(M: int, N: int, K: int, dtype: torch.dtype) -> None:
    weight = torch.randn(N, K).to(dtype)
    y = dense_product.forward(torch.randn(M, K).to(dtype), weight, None, None, None, torch.ones(N))
    assert torch.equal(y, torch.ones(M, N, dtype=dtype))
    dx = dense_product.backward(torch.randn(M, N).to(dtype), weight, None, None, None, None)
    assert torch.equal(dx, torch.zeros(M, K, dtype=dtype))


def test_fp64() -> None:
    weight, x, grad, c = (torch.randn(*shape).double() for shape in ((70, 130), (2, 130), (2, 70), (70,)))
    torch.testing.assert_close(dense_product.forward(x, weight, None, None, c, None), x @ weight.T * c)
    torch.testing.assert_close(dense_product.backward(grad, weight, c, None, None, x), (grad * c) @ weight + x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_for_any_number_of_threads(dtype: torch.dtype, way: Processor) -> None:
    weight = torch.randn(2100, 1040).to(dtype)
    x, grad = torch.randn(3, 1040).to(dtype), torch.randn(3, 2100).to(dtype)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        y = dense_product.forward(x, weight, None, None, None, None)
        found.append((y, dense_product.backward(grad, weight, None, None, None, None)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for one in found[1:] for a, b in zip(found[0], one, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_with_its_token(dtype: torch.dtype, way: Processor) -> None:
    weight = torch.randn(64, 128).to(dtype)
    x, grad = torch.randn(3, 128).to(dtype), torch.randn(3, 64).to(dtype)
    x[0, 3] = grad[0, 3] = torch.nan
    for result in (
        dense_product.forward(x, weight, None, None, None, None),
        dense_product.backward(grad, weight, None, None, None, None),
    ):
        assert result[0].isnan().all()
        assert result[1:].isfinite().all()


def test_what_is_planned_runs(way: Processor, monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` names the way that `forward` goes."""
    ran: list[str] = []
    real = dense_product.product
    monkeypatch.setattr(dense_few_tokens, "forward", lambda *args: ran.append("registers"))
    monkeypatch.setattr(dense_product, "product", lambda *args: (ran.append("dense"), real(*args))[1])
    told = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for weight in (torch.randn(64, 96).to(dtype), torch.randn(96, 64).to(dtype).T):
            for tokens in (0, 1, 8, 16, 17, 32, 33):
                told.append(explain(weight, tokens).path)
                dense_product.forward(torch.zeros(tokens, 96, dtype=dtype), weight, None, None, None, None)
    assert ran == told
    assert set(ran) == {"registers", "dense"}
