"""torch.compile: whole graphs, on the CPU and with CUDA tensors that exist in shape only; recompiled for little."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from lorafam import NF4Linear, quantize_nf4
from lorafam import functional as F
from lorafam.methods import METHODS, AdapterLayer
from tests.methods.settings import settings_of

K, N, RANK = 128, 72, 4
each_method = pytest.mark.parametrize("method", sorted(METHODS))
each_base = pytest.mark.parametrize("base", ["dense", "nf4"])


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def layer_of(method: str, base: str, alpha: float = 8, **settings: Any) -> AdapterLayer:
    torch.manual_seed(0)
    dense = nn.Linear(K, N)
    settings |= settings_of(method, alpha=alpha)
    layer = METHODS[method](NF4Linear.from_linear(dense) if base == "nf4" else dense, r=RANK, **settings)
    with torch.no_grad():
        for parameter in layer.active.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return layer


def gradients(call: Callable[[torch.Tensor], torch.Tensor], layer: AdapterLayer, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    return list(torch.autograd.grad(call(x).square().sum(), [x, *layer.active.parameters()]))


DROPOUTS: list[dict[str, Any]] = [{}, {"dropout": 0.3}]
WAYS = [(method, settings) for method in sorted(METHODS) for settings in DROPOUTS]
WAYS.append(("dora", {"dropout": 0.3, "dora_dropout": "input"}))
each_way = pytest.mark.parametrize(("method", "settings"), WAYS, ids=str)


@each_way
@each_base
def test_whole_graph_with_the_same_gradients(method: str, base: str, settings: dict[str, Any]) -> None:
    layer = layer_of(method, base, **settings)
    x = torch.randn(9, K)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.manual_seed(1)
    expected = gradients(layer, layer, x)
    torch.manual_seed(1)
    found = gradients(compiled, layer, x)
    for mine, right in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-5)


class Watched(torch.fx.Interpreter):
    """Runs a forward's graph, keeping what each operation was given and gave."""

    def __init__(self, graph: torch.fx.GraphModule) -> None:
        super().__init__(graph)
        self.gave: dict[str, tuple[torch.Tensor, tuple[Any, ...]]] = {}

    def run_node(self, node: torch.fx.Node) -> Any:
        result = super().run_node(node)
        if node.op.startswith("call_") and isinstance(result, torch.Tensor):
            self.gave[node.name] = result, self.fetch_args_kwargs_from_env(node)[0]
        return result


class Outer(torch.fx.Interpreter):
    """Runs a graph; the forwards of its autograd Functions are watched first."""

    watched: list[Watched]

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.higher_order.autograd_function_apply:
            self.watched.append(Watched(args[0]))
            # before torch 2.11 the forward's graph has an unused context in front
            context = [None] * (len(args[0].graph.find_nodes(op="placeholder")) - len(args[2:]))
            with torch.no_grad():
                self.watched[-1].run(*context, *args[2:])
        return super().call_function(target, args, kwargs)


@each_way
@each_base
def test_no_operation_of_a_forward_returns_its_input(method: str, base: str, settings: dict[str, Any]) -> None:
    """torch 2.11 makes every intermediate of a compiled Function's forward an output of it; the gradient of an output
    that is an intermediate too (`y.to` its own dtype) is lost there, without a word.
    """
    watched: list[Watched] = []

    def watch(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        outer = Outer(graph)
        outer.watched = watched
        return outer.run

    layer = layer_of(method, base, **settings)
    torch.compile(layer, backend=watch, fullgraph=True)(torch.randn(9, K, requires_grad=True))
    assert watched
    for forward in watched:
        for name, (result, given) in forward.gave.items():
            assert all(result is not one for one in given), name


@each_method
@each_base
def test_compiled_once_for_every_scaling_and_twice_for_every_number_of_tokens(method: str, base: str) -> None:
    counter = CompileCounter()
    layer = layer_of(method, base)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(7, K)
    for scaling in (2.0, 0.5, 1.0, 3.75):
        layer.active.scaling = scaling
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1
    for tokens in (33, 5, 200, 64):
        x = torch.randn(tokens, K)
        torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2


@each_base
def test_layers_of_other_scalings_share_a_graph(base: str) -> None:
    """Each layer compiled on its own, as for regional compilation: one graph serves all."""
    counter = CompileCounter()
    x = torch.randn(7, K)
    for alpha in range(1, 13):
        layer = layer_of("lora", base, alpha)
        layer.compile(backend=counter, fullgraph=True)
        layer(x)
    assert counter.frame_count == 1


def test_scaling_as_a_tensor_compiles_once() -> None:
    weight = quantize_nf4(torch.randn(N, K))
    A, B, x = torch.randn(RANK, K), torch.randn(N, RANK), torch.randn(3, K)
    counter = CompileCounter()
    compiled = torch.compile(lambda s: F.lora_linear(x, weight, A, B, s), backend=counter, fullgraph=True)
    for scaling in (0.5, 1.0, 2.0, 7.25):
        expected = F.lora_linear(x, weight, A, B, scaling)
        torch.testing.assert_close(compiled(torch.tensor(scaling)), expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@pytest.fixture
def _cuda_in_name_only() -> Iterator[None]:
    """Lets autograd build nodes on fake CUDA tensors in a CPU build of torch, which has no device guard for them."""
    if torch.cuda.is_available():
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cpu, guards_before = guards[0], guards[1]
    guards[1] = cpu
    yield
    guards[1] = guards_before


@pytest.mark.usefixtures("_cuda_in_name_only")
@each_method
@each_base
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_cuda_tensors_of_no_gpu(method: str, base: str, dropout: float) -> None:
    """Forward and backward are traced as one graph of the ops, and everything in it lies on the GPU."""
    layer = layer_of(method, base, dropout=dropout)
    mode = FakeTensorMode()

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        shape = mode.from_tensor(tensor.detach())
        with mode:
            return torch.empty_like(shape, device="cuda", requires_grad=tensor.requires_grad)

    graphs: list[torch.fx.GraphModule] = []

    def capture(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    swap = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        fake = layer._apply(moved)
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(swap)
    with mode:
        x = torch.empty(9, K, device="cuda", requires_grad=True)
        y = torch.compile(fake, backend=capture, fullgraph=True)(x)
    assert y.shape == (9, N)
    assert y.device.type == "cuda"
    (graph,) = graphs
    called = set()
    for part in graph.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                called.add(str(node.target))
                value = node.meta.get("example_value")
                if isinstance(value, torch.Tensor):
                    assert value.device.type == "cuda", node
    for op in ("lora_project", "lora_linear", "lora_factors_grad", "lora_linear_grad"):
        assert f"lorafam.{op}" in called
