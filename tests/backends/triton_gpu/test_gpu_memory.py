"""Which memory launches share with which, and where calls are repeated: devices, streams, CUDA graphs, failures."""

from __future__ import annotations

import importlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lorafam import quantize_nf4
from lorafam.backends import triton_gpu
from lorafam.backends.triton_gpu import graph_counts, split, weight
from lorafam.backends.triton_gpu.memory import kept_memory
from lorafam.backends.triton_gpu.staged import decoded_weight
from lorafam.ops.by_storage import Storage, joined
from tests.backends.triton_gpu.fake_gpu import FakeGpu, Launched, on
from tests.conftest import INTERPRETING

pytestmark = pytest.mark.skipif(INTERPRETING, reason="of compiled code only")

Tensor = torch.Tensor
# K is split among the fake's 16 multiprocessors
M, N, K, R = 3, 72, 4096, 5
CACHES = (weight._levels, weight._table, split.multiprocessors)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGpu]:
    fake = FakeGpu()
    fake.install(monkeypatch)
    monkeypatch.setattr(graph_counts, "_reserved", {})
    launch = importlib.import_module("lorafam.backends.triton_gpu.launch")
    monkeypatch.setattr(launch, "_gpu_architecture", lambda index: "sm_90")
    triton_gpu.forget()
    for name in ("lora_linear", "lora_linear_group", "nf4_dequantize"):
        # compiled for the fake
        function = getattr(importlib.import_module(f"lorafam.kernels.{name}"), f"{name}_kernel")
        monkeypatch.setattr(function, "device_caches", type(function.device_caches)(function.create_binder))
    yield fake
    triton_gpu.forget()
    for cache in CACHES:
        cache.cache_clear()


def arguments(device: str = "cuda:0") -> tuple[Any, ...]:
    stored = quantize_nf4(torch.randn(N, K))
    codes, scales = on(device, stored.codes), [on(device, scale) for scale in stored.scales]
    x = on(device, torch.randn(M, K).bfloat16())
    return (
        x,
        codes,
        scales,
        list(stored.layout),
        on(device, torch.randn(M, R)),
        on(device, torch.randn(N, R)),
        None,
        None,
    )


def grouped(given: tuple[Any, ...]) -> tuple[Any, ...]:
    x, codes, scales, layout, P, B_hat, _, _ = given
    weights = joined([Storage(codes, scales, layout)] * 2)
    return x, *weights, [P, P.clone()], [B_hat, B_hat.clone()], [None, None]


def call(given: tuple[Any, ...]) -> None:
    if triton_gpu.again(*given) is None:
        triton_gpu.lora_linear(*given)


def address(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else value


def counts(launch: Launched) -> int:
    return address(launch.arguments["arrivals_ptr"])


def test_a_call_is_repeated_on_its_device_and_stream(gpu: FakeGpu) -> None:
    given = arguments()
    call(given)
    assert triton_gpu.again(*given) is not None
    first, second = gpu.launches
    assert (first.device, first.stream) == (second.device, second.stream) == (0, 11)
    assert first.kernel is second.kernel
    for name, value in first.arguments.items():
        if name != "y_ptr" and isinstance(value, Tensor):
            assert second.arguments[name] == value.data_ptr()


def test_another_stream_has_memory_of_its_own(gpu: FakeGpu) -> None:
    given = arguments()
    call(given)
    gpu.streams[0] = 21
    assert triton_gpu.again(*given) is None
    call(given)
    assert triton_gpu.again(*given) is not None
    gpu.streams[0] = 11
    assert triton_gpu.again(*given) is not None
    assert [launch.stream for launch in gpu.launches] == [11, 21, 21, 11]
    own, other = counts(gpu.launches[0]), counts(gpu.launches[1])
    assert own != other
    assert [counts(launch) for launch in gpu.launches] == [own, other, other, own]


@pytest.mark.parametrize("group", [False, True], ids=["one", "group"])
def test_a_device_that_is_not_the_current_one(group: bool, gpu: FakeGpu) -> None:
    given = arguments("cuda:1")
    op, again = triton_gpu.lora_linear, triton_gpu.again
    if group:
        given, op, again = grouped(given), triton_gpu.lora_linear_group, triton_gpu.group_again
    for current in (0, 1):
        gpu.device = current
        op(*given)
        assert (again(*given) is not None) == (current == 1)
        assert gpu.device == current
    assert [(launch.device, launch.stream) for launch in gpu.launches] == [(1, 12)] * 3


def test_a_tensor_on_another_device_is_not_taken_for_one_like_the_first(gpu: FakeGpu) -> None:
    given = arguments()
    call(given)
    for place, tensor in ((4, given[4]), (5, given[5])):
        for device in ("cuda:1", None):
            moved = tensor.as_subclass(Tensor) if device is None else on(device, tensor)
            assert triton_gpu.again(*given[:place], moved, *given[place + 1 :]) is None


@pytest.mark.parametrize("group", [False, True], ids=["one", "group"])
def test_a_graph_shares_nothing_with_eager_work(group: bool, gpu: FakeGpu) -> None:
    given = arguments()
    op, again = triton_gpu.lora_linear, triton_gpu.again
    if group:
        given, op, again = grouped(given), triton_gpu.lora_linear_group, triton_gpu.group_again
    op(*given)
    zeroed = list(gpu.zeroed)
    gpu.capturing = True
    for _ in range(3):
        # though a call like it was made on this very stream
        assert again(*given) is None
        op(*given)
    gpu.capturing = False
    assert again(*given) is not None
    eager, *captured, repeated = gpu.launches
    assert counts(eager) == counts(repeated)
    assert address(eager.arguments["parts_ptr"]) == address(repeated.arguments["parts_ptr"])
    # counts of each launch's own: branches of a graph may run side by side
    ranges = sorted((counts(launch), counts(launch) + 4 * launch.grid[0]) for launch in [eager, *captured])
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))
    assert address(eager.arguments["parts_ptr"]) not in [address(launch.arguments["parts_ptr"]) for launch in captured]
    for launch in captured:
        tiles, shares, _ = launch.grid
        size = launch.arguments["BLOCK_M"] * launch.arguments["BLOCK_N"]
        assert launch.arguments["parts_ptr"].numel() == tiles * shares * size
        assert launch.arguments["arrivals_ptr"].numel() == tiles
        # as aligned as the eager one's, whose kernel it is
        assert counts(launch) % 16 == 0
        assert not launch.arguments["arrivals_ptr"].any()
    # no node that sets them to zero
    assert gpu.zeroed == zeroed


def test_a_graph_on_a_device_that_is_not_the_current_one(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    given = arguments("cuda:1")
    triton_gpu.lora_linear(*given)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.device == 1)
    triton_gpu.lora_linear(*given)
    assert counts(gpu.launches[0]) != counts(gpu.launches[1])


def test_without_an_eager_call_before_a_graph_has_counts_in_its_own_memory(gpu: FakeGpu) -> None:
    given = arguments()
    gpu.capturing = True
    triton_gpu.lora_linear(*given)
    assert graph_counts._reserved == {}
    assert split._kept == {}
    assert gpu.zeroed == [given[0].device]
    gpu.capturing = False
    triton_gpu.lora_linear(*given)
    assert len(split._kept) == 1


def test_weights_are_decoded_into_memory_of_their_own(gpu: FakeGpu) -> None:
    """Else a thread would multiply with the weight that another decoded meanwhile."""
    x, codes, scales, layout = arguments()[:4]
    first, second = (decoded_weight(codes, scales, layout, None, x.dtype) for _ in range(2))
    assert first.data_ptr() != second.data_ptr()
    assert [address(launch.arguments["decoded_ptr"]) for launch in gpu.launches] == [
        first.data_ptr(),
        second.data_ptr(),
    ]


def test_counts_for_graphs_are_reserved_in_time_and_given_once() -> None:
    cpu = torch.device("cpu")
    graph_counts._reserved.pop(cpu, None)
    given: list[Tensor] = []
    try:
        for _ in range(3):
            graph_counts.reserve_graph_counts(cpu)
            given += [graph_counts.graph_counts(cpu, 1001) for _ in range(graph_counts._ZEROS // 2 // 1004 + 1)]
        assert len(graph_counts._reserved[cpu]) == 3
    finally:
        del graph_counts._reserved[cpu]
    ranges = sorted((one.data_ptr(), one.data_ptr() + one.nbytes) for one in given)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ranges))


@pytest.mark.parametrize("repeated", [False, True], ids=["first", "repeated"])
def test_after_a_launch_that_failed_its_counts_are_not_used(repeated: bool, gpu: FakeGpu) -> None:
    given = arguments()
    call(given)
    gpu.failing = True
    with pytest.raises(RuntimeError, match="the launch failed"):
        call(given if repeated else (given[0][:2], *given[1:4], given[4][:2], *given[5:]))
    gpu.failing = False
    assert triton_gpu.again(*given) is None
    # held, so that the next isn't at its address by chance
    before = gpu.launches[0].arguments["arrivals_ptr"]
    call(given)
    assert counts(gpu.launches[-1]) != before.data_ptr()


def test_what_is_kept_is_allocated_outside_of_the_threads_pool(gpu: FakeGpu) -> None:
    threads = []
    kept_memory(torch.device("cuda", 0), lambda: threads.append(threading.get_ident()))
    assert threads != [threading.get_ident()]
    with pytest.raises(MemoryError):
        kept_memory(torch.device("cuda", 0), _no_memory)


def _no_memory() -> None:
    raise MemoryError
