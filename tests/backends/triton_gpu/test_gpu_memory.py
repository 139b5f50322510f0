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

prepared = importlib.import_module("lorafam.backends.triton_gpu.prepared")

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
    other = on(x.device, P.clone()), on(x.device, B_hat.clone())
    return x, *weights, [P, other[0]], [B_hat, other[1]], [None, None]


def call(given: tuple[Any, ...], name: str = "lora_linear") -> bool:
    """Makes it; whether its like was known."""
    before = {key: known for key, known in prepared._known.items() if known is not None}
    triton_gpu.prepared(name, getattr(triton_gpu, name), *given)
    return bool(before) and {key for key, known in prepared._known.items() if known is not None} == set(before)


def address(value: Any) -> int:
    return value.data_ptr() if isinstance(value, Tensor) else value


def counts(launch: Launched) -> int:
    return address(launch.arguments["arrivals_ptr"])


def test_a_call_is_repeated_on_its_device_and_stream(gpu: FakeGpu) -> None:
    given = arguments()
    assert not call(given)
    assert call(given)
    first, second = gpu.launches
    assert (first.device, first.stream) == (second.device, second.stream) == (0, 11)
    assert first.kernel is second.kernel
    for name, value in first.arguments.items():
        if name != "y_ptr" and isinstance(value, Tensor):
            assert second.arguments[name] == value.data_ptr()


def test_another_stream_has_memory_of_its_own(gpu: FakeGpu) -> None:
    given = arguments()
    assert not call(given)
    gpu.streams[0] = 21
    assert not call(given)
    assert call(given)
    gpu.streams[0] = 11
    assert call(given)
    assert [launch.stream for launch in gpu.launches] == [11, 21, 21, 11]
    own, other = counts(gpu.launches[0]), counts(gpu.launches[1])
    assert own != other
    assert [counts(launch) for launch in gpu.launches] == [own, other, other, own]


@pytest.mark.parametrize("group", [False, True], ids=["one", "group"])
def test_a_device_that_is_not_the_current_one(group: bool, gpu: FakeGpu) -> None:
    given = arguments("cuda:1")
    name = "lora_linear_group" if group else "lora_linear"
    given = grouped(given) if group else given
    for current in (0, 1):
        gpu.device = current
        call(given, name)
        assert call(given, name) == (current == 1)
        assert gpu.device == current
    assert [(launch.device, launch.stream) for launch in gpu.launches] == [(1, 12)] * 4


def test_a_tensor_on_another_device_is_not_taken_for_one_like_the_first(gpu: FakeGpu) -> None:
    given = arguments()
    call(given)
    for place, tensor in ((4, given[4]), (5, given[5])):
        for device in ("cuda:1", None):
            moved = tensor.as_subclass(Tensor) if device is None else on(device, tensor)
            known = list(prepared._known)
            call((*given[:place], moved, *given[place + 1 :]))
            assert list(prepared._known) == known


@pytest.mark.parametrize("group", [False, True], ids=["one", "group"])
def test_a_graph_shares_nothing_with_eager_work(group: bool, gpu: FakeGpu) -> None:
    given = arguments()
    name = "lora_linear_group" if group else "lora_linear"
    given = grouped(given) if group else given
    call(given, name)
    zeroed = list(gpu.zeroed)
    gpu.capturing = True
    for _ in range(3):
        # though a call like it was made on this very stream
        call(given, name)
    gpu.capturing = False
    assert call(given, name)
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
    first, second = (decoded_weight(Storage(codes, scales, layout), None, x.dtype) for _ in range(2))
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
    fewer = on("cuda:0", given[0][:2]), *given[1:4], on("cuda:0", given[4][:2]), *given[5:]
    with pytest.raises(RuntimeError, match="the launch failed"):
        call(given if repeated else fewer)
    gpu.failing = False
    # held, so that the next isn't at its address by chance
    before = gpu.launches[0].arguments["arrivals_ptr"]
    assert not call(given)
    assert counts(gpu.launches[-1]) != before.data_ptr()


def test_before_the_gpu_is_checked_no_call_is_prepared(gpu: FakeGpu) -> None:
    given = arguments()
    gpu.settled = False
    assert not call(given)
    assert not call(given)
    gpu.settled = True
    assert not call(given)
    assert call(given)


def test_a_call_during_which_all_are_forgotten_is_not_known(gpu: FakeGpu) -> None:
    """Another thread's launch failed, and left counts in memory that this call uses too."""
    given = arguments()

    def forgotten(*given: Any) -> Any:
        y = triton_gpu.lora_linear(*given)
        triton_gpu.forget()
        return y

    triton_gpu.prepared("lora_linear", forgotten, *given)
    assert not prepared._known
    assert not call(given)


def test_what_is_kept_is_allocated_outside_of_the_threads_pool(gpu: FakeGpu) -> None:
    (thread,) = kept_memory(torch.device("cuda", 0), lambda: (torch.tensor(threading.get_ident()),))
    assert thread != threading.get_ident()
    with pytest.raises(MemoryError):
        kept_memory(torch.device("cuda", 0), _no_memory)


def _no_memory() -> None:
    raise MemoryError
