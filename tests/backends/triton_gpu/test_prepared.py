"""A call like an earlier one: its steps alone, right, found again only where it is alike, and cheap for the host."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafam import functional as F
from lorafam import quantize_nf4
from lorafam.backends import triton_gpu
from lorafam.backends.triton_gpu.launch import compiled_only, recorded
from lorafam.backends.triton_gpu.memory import kept_memory
from lorafam.ops.by_storage import Storage, joined
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="the interpreter launches anew each time")

Tensor = torch.Tensor
M, N, K, R = 3, 72, 256, 5
Arguments = tuple[Any, ...]
module = importlib.import_module("lorafam.backends.triton_gpu.prepared")
prepared = triton_gpu.prepared


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


def calls() -> int:
    """How many are known."""
    return len(module._known)


def test_the_same_bits(where: str) -> None:
    first = arguments(where, 0)
    op(first)
    # other values everywhere, of the weight too
    other = arguments(where, 1)
    assert calls() == (before := calls())
    found = op(other)
    assert calls() == before
    assert torch.equal(found, fresh(other))
    assert torch.equal(op(first), fresh(first))


@pytest.mark.parametrize(
    "change",
    [
        lambda x, data, scales, layout, P, B, c, bias: (x[:2], data, scales, layout, P[:2], B, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x.half(), data, scales, layout, P, B, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, None, None, c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, P[:, :4], B[:, :4], c, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, P, B, None, bias),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, P, B, c, bias.bfloat16()),
        lambda x, data, scales, layout, P, B, c, bias: (x, data, scales, layout, P, B, c, c),
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
        "no factors",
        "rank",
        "no c",
        "dtype of bias",
        "one tensor twice",
        "not contiguous",
        "alignment",
    ],
)
def test_what_is_not_alike_is_not_repeated(change: Callable[..., Arguments], where: str) -> None:
    first = arguments(where, 0)
    op(first)
    before = calls()
    changed = change(*first)
    found = op(changed)
    assert calls() == before + 1
    assert torch.equal(found, fresh(changed))


def test_bad_input_is_told_after_a_good_call(where: str) -> None:
    first = arguments(where, 0)
    op(first)
    with pytest.raises(ValueError, match="P"):
        op((*first[:4], first[4][:2], *first[5:]))
    with pytest.raises(ValueError, match="codes"):
        op((*first[:3], [2 * N, *first[3][1:]], *first[4:]))


class Operations(TorchDispatchMode):
    """The names of torch's operations that run meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def known(name: str) -> Any:
    """The call of this name, and the tensors that it was last given."""
    (call,) = [call for key, call in module._known.items() if key[0] == name]
    return call


def test_only_the_output_is_allocated(where: str) -> None:
    first = arguments(where, 0)
    op(first)
    tensors: list[Tensor] = []
    module._describe(first, tensors, [], -3)
    with Operations() as operations:
        known("lora_linear")(tensors)
    assert [name for name in operations.seen if "empty" in name] == ["aten.empty_strided.default"]


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
    call = known("lora_linear")
    monkeypatch.setattr(call, "_steps", [one for one in call._steps if "launch" not in one[0].__qualname__])
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


METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "no bias": {"bias": False},
    "lora with dropout": {"dropout_p": 0.3},
    "dora": {"magnitude": True},
    "dora, no bias": {"magnitude": True, "bias": False},
    "adalora": {"scale": True},
    "bf16 factors": {"factors": torch.bfloat16},
}


def step(
    where: str,
    seed: int,
    weight: Any,
    tokens: int = M,
    *,
    bias: bool = True,
    dropout_p: float = 0.0,
    magnitude: bool = False,
    scale: bool = False,
    factors: torch.dtype = torch.float32,
) -> list[Tensor]:
    """Y, and the gradients of all that has one."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=generator).to(where, dtype)

    x = random(tokens, K, dtype=torch.bfloat16)
    A, B = random(R, K, dtype=factors), random(N, R, dtype=factors)
    own = random(N) if bias else None
    s = random(R) if scale else 2.0
    m, n = random(N).abs() + 0.5, random(N).abs() + 0.5
    leaves = [leaf.requires_grad_() for leaf in (x, A, B, own, s, m) if isinstance(leaf, Tensor)]
    dropped = {"dropout_p": dropout_p, "training": True, "seed": seed}
    if magnitude:
        y = F.dora_linear(x, weight, A, B, m, 2.0, own, norm=n, **dropped)
    else:
        y = F.lora_linear(x, weight, A, B, s, own, **dropped)
    y.backward(random(*y.shape, dtype=y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@pytest.mark.parametrize("tokens", [1, 40], ids=["one token", "40 tokens"])
@pytest.mark.parametrize("settings", METHODS.values(), ids=METHODS)
def test_forward_and_backward(settings: dict[str, Any], tokens: int, where: str) -> None:
    weight = quantize_nf4(torch.randn(N, K, generator=torch.Generator().manual_seed(9)).to(where))
    step(where, 0, weight, tokens, **settings)
    before = dict(module._known)
    assert {key[0] for key in before} >= {"forward", "backward"}
    assert None not in before.values()
    again = step(where, 1, weight, tokens, **settings)
    assert module._known == before
    triton_gpu.forget()
    assert all(map(torch.equal, again, step(where, 1, weight, tokens, **settings)))


def test_a_dense_weight(where: str) -> None:
    weights = [torch.randn(N, K, generator=torch.Generator().manual_seed(i)).to(where, torch.bfloat16) for i in (0, 1)]
    step(where, 0, weights[0])
    before = calls()
    again = step(where, 1, weights[1])
    assert calls() == before
    triton_gpu.forget()
    assert all(map(torch.equal, again, step(where, 1, weights[1])))


def test_under_autocast_and_without_gradients(where: str) -> None:
    weight = quantize_nf4(torch.randn(N, K).to(where))
    x, A, B = (torch.randn(shape).to(where) for shape in ((M, K), (R, K), (N, R)))

    def call() -> Tensor:
        with torch.autocast(where, torch.bfloat16):
            return F.lora_linear(x, weight, A, B, 2.0)

    first = call()
    assert first.dtype == torch.bfloat16
    assert torch.equal(call(), first)


def test_a_group(where: str) -> None:
    given = arguments(where, 0)
    x, data, scales, layout, P, B_hat = given[:6]
    weights = joined([Storage(data, scales, layout)] * 2)
    op = torch.ops.lorafam.lora_linear_group
    op(x, *weights, [P, P], [B_hat, B_hat], [None, None])
    before = calls()
    apart = [P, P.clone()], [B_hat, B_hat + 1]
    first = op(x, *weights, *apart, [None, None])
    # one tensor twice is another call than two
    assert calls() == before + 1
    other = arguments(where, 1)
    weights = joined([Storage(*other[1:4]), Storage(*arguments(where, 2)[1:4])])
    second = op(x, *weights, *apart, [None, None])
    assert calls() == before + 2
    assert torch.equal(first[0], fresh((*given[:6], None, None)))
    assert torch.equal(second[0], fresh((x, *other[1:4], P, B_hat, None, None)))


def launching(x: Tensor) -> Tensor:
    return torch.ops.lorafam.lora_project(x, x[:2], None, 0.0)


def test_what_decides_by_a_value_is_not_repeated(where: str) -> None:
    def by_value(x: Tensor) -> Tensor:
        return launching(x) * (1 if x.sum() > 0 else -1)

    x = torch.ones(M, K, device=where)
    first = prepared("by value", by_value, x)
    assert torch.equal(prepared("by value", by_value, -x), -first)
    assert known("by value") is None


def test_what_uses_a_tensor_from_elsewhere_is_not_repeated(where: str) -> None:
    x, elsewhere = torch.randn(M, K, device=where), torch.ones((), device=where)

    def uses() -> Callable[[Tensor], Tensor]:
        other = elsewhere.clone()
        return lambda x: launching(x) * other

    prepared("elsewhere", uses(), x)
    elsewhere.fill_(3)
    assert torch.equal(prepared("elsewhere", uses(), x), launching(x) * 3)
    kept = kept_memory(x.device, lambda: torch.full((), 2.0, device=where))
    prepared("kept", lambda x: launching(x) * kept, x)
    assert known("kept") is not None


def test_memory_is_freed_when_no_step_needs_it_any_more(where: str) -> None:
    def three(x: Tensor) -> Tensor:
        total = launching(x).clone()
        for factor in (2.0, 3.0, 4.0):
            total.add_(launching(x).mul(factor).neg())
        return total

    x = torch.randn(M, K, device=where)
    prepared("three", three, x)
    call = known("three")
    assert torch.equal(call([x]), three(x))
    tensors, alive = [x, *call._beside], []
    for one, done in call._steps:
        one(tensors)
        for place in done:
            tensors[place] = None
        alive.append(sum(tensor is not None for tensor in tensors))
    # the total, and two of the chain's
    assert max(alive) == 3 + sum(tensor is not None for tensor in [x, *call._beside])


def test_what_launches_nothing_is_not_kept(where: str) -> None:
    """It is eager PyTorch, and may be that for a time only."""
    prepared("eager", lambda x: x + 1, torch.ones(3, device=where))
    assert known("eager") is None


def test_an_operation_in_place_and_one_with_several_results(where: str) -> None:
    def several(x: Tensor) -> tuple[Tensor, list[Tensor], None]:
        found = launching(x)
        found.mul_(2)
        one, two = found.split(1, 1)
        return one, [two + 1, found], None

    x = torch.randn(M, K, device=where)
    prepared("several", several, x)
    one, (two, whole), nothing = prepared("several", several, x + 1)
    expected = launching(x + 1) * 2
    assert torch.equal(whole, expected)
    assert torch.equal(one, expected[:, :1])
    assert torch.equal(two, expected[:, 1:] + 1)
    assert nothing is None


def test_a_lazily_negated_view_has_its_sign(where: str) -> None:
    x = torch.randn(M, K, device=where)
    prepared("negated", launching, x)
    negated = torch.complex(x, -x).conj().imag
    assert negated.is_neg()
    assert torch.equal(prepared("negated", launching, negated), launching(x))


def test_what_only_compiles_is_not_prepared(where: str) -> None:
    x = torch.randn(M, K)
    with compiled_only("sm_90") as launches:
        launching(x)
        launching(x)
    assert len(launches) == 2
    assert not calls()


def test_a_repeated_launch_is_recorded(kernels: str, where: str) -> None:
    if kernels == "cuda":
        pytest.skip("of ptxsim's launches")
    x = torch.randn(M, K)
    with recorded() as first:
        launching(x)
    with recorded() as second:
        launching(x)
    assert [one.name for one in second] == [one.name for one in first]
    assert second[0].kernel is first[0].kernel
