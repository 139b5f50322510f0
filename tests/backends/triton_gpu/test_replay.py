"""A call on the decode path like an earlier one: right, found again only where it is alike, and cheap for the host."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafam import quantize_nf4
from lorafam.backends import triton_gpu
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="the interpreter launches anew each time")

Tensor = torch.Tensor
M, N, K, R = 3, 72, 256, 5
Arguments = tuple[Any, ...]


@pytest.fixture
def where(kernels: str) -> Iterator[str]:
    triton_gpu.forget()
    yield "cuda" if kernels == "cuda" else "cpu"
    triton_gpu.forget()


def arguments(where: str, seed: int, weight: Any = None, dtype: torch.dtype = torch.bfloat16) -> Arguments:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(where)

    weight = weight or quantize_nf4(random(N, K))
    storage = (weight.codes, list(weight.scales), list(weight.layout))
    return random(M, K).to(dtype), *storage, random(M, R), random(N, R), random(N).abs(), random(N)


def op(given: Arguments) -> Tensor:
    return torch.ops.lorafam.lora_linear(*given)


def fresh(given: Arguments) -> Tensor:
    triton_gpu.forget()
    return op(given)


def test_the_same_bits(where: str) -> None:
    first = arguments(where, 0)
    op(first)
    # other tokens, factors and vectors; the same weight
    other = (*arguments(where, 1)[:1], *first[1:4], *arguments(where, 1)[4:])
    assert triton_gpu.again(*other) is not None
    assert torch.equal(op(other), fresh(other))
    assert torch.equal(op(first), fresh(first))


@pytest.mark.parametrize(
    "change",
    [
        lambda x, data, scales, layout, P, B, c, bias: (x[:2], data, scales, layout, P[:2], B, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x.half(), data, scales, layout, P, B, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data.clone(), scales, layout, P, B, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, [s.clone() for s in scales], layout, P, B, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, None, None, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, P[:, :4], B[:, :4], c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, P, B, None, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, P, B, c, bias.bfloat16()),
        lambda x, data, scales, layout, P, B, c, bias: (
            x.flip(0).T.contiguous().T,
            data,
            scales,
            layout,
            P,
            B,
            c,
            bias,
        ),
        lambda x, data, scales, layout, P, B, c, bias: (
            torch.cat([x.view(-1)[:1], x.view(-1)])[1:].view_as(x),
            data,
            scales,
            layout,
            P,
            B,
            c,
            bias,
        ),
    ],
    ids=[
        "tokens",
        "dtype",
        "codes",
        "scales",
        "no factors",
        "rank",
        "no c",
        "dtype of bias",
        "not contiguous",
        "alignment",
    ],
)
def test_what_is_not_alike_is_not_repeated(change: Callable[..., Arguments], where: str) -> None:
    first = arguments(where, 0)
    op(first)
    changed = change(*first)
    assert triton_gpu.again(*changed) is None
    assert torch.equal(op(changed), fresh(changed))


def test_bad_input_is_told_after_a_good_call(where: str) -> None:
    first = arguments(where, 0)
    op(first)
    with pytest.raises(ValueError, match="P"):
        op((*first[:4], first[4][:2], *first[5:]))
    with pytest.raises(ValueError, match="codes"):
        op((*first[:3], [2 * N, *first[3][1:]], *first[4:]))


def test_a_freed_weight_is_forgotten(where: str) -> None:
    first = arguments(where, 0)
    op(first)
    module = sys.modules["lorafam.backends.triton_gpu.lora_linear"]
    (known,) = module._known.values()
    del first
    assert known.data() is None


class Operations(TorchDispatchMode):
    """The names of torch's operations that run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_only_the_output_is_allocated(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = arguments(where, 0)
    op(first)
    no_launch(monkeypatch)
    with Operations() as operations:
        triton_gpu.again(*first)
    assert operations.seen == ["aten.new_empty.default"]


def test_host_time(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the launch itself left out a call takes at most twice an empty custom op's time: the least of many."""

    @torch.library.custom_op("lorafam_test::empty", mutates_args=())
    def empty(
        x: Tensor,
        data: Tensor,
        scales: list[Tensor],
        layout: list[int],
        P: Tensor | None,
        B_hat: Tensor | None,
        c: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        return x.new_empty((x.shape[0], layout[0]))

    given = arguments(where, 0)
    op(given)
    no_launch(monkeypatch)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    ours, theirs = [], []
    for _ in range(40):
        for run, times in ((op, ours), (lambda given: empty(*given), theirs)):
            start = time.perf_counter()
            for _ in range(100):
                run(given)
            times.append((time.perf_counter() - start) / 100)
    print(f"lora_linear {min(ours) * 1e6:.1f} µs, an empty custom op {min(theirs) * 1e6:.1f} µs")
    assert min(ours) <= 2 * min(theirs)


def no_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["lorafam.backends.triton_gpu.lora_linear"]
    for weight in module._known.values():
        for replay in weight.calls.values():
            monkeypatch.setattr(replay, "_start", lambda arguments: None)
