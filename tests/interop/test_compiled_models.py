"""torch.compile of accelerated models: whole graphs, compiled anew for little; generation with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import lorafam
from tests.interop.tiny_lm import METHODS, peft_model, tokens


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("base", ["fp32", "nf4"])
@pytest.mark.parametrize("method", METHODS)
def test_compiled_once_for_every_scaling(method: str, base: str) -> None:
    counter = CompileCounter()
    model = peft_model(method, base).eval()
    lorafam.accelerate(model)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    batch = tokens()
    for scaling in (2.0, 0.5, 1.0, 3.75):
        for layer in model.base_model.model.block.children():
            if hasattr(layer, "scaling"):
                layer.scaling["default"] = scaling
        with torch.no_grad():
            torch.testing.assert_close(compiled(batch), model(batch), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 1


@pytest.mark.parametrize("base", ["fp32", "nf4"])
def test_compiled_twice_for_every_number_of_tokens(base: str) -> None:
    counter = CompileCounter()
    model = peft_model("dora", base).eval()
    lorafam.accelerate(model)
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    for length in (7, 16, 5, 40, 23):
        batch = tokens(length=length)
        with torch.no_grad():
            torch.testing.assert_close(compiled(batch), model(batch), rtol=1e-5, atol=1e-5)
    assert counter.frame_count == 2


def test_accelerated_after_compiling_is_compiled_anew() -> None:
    model = peft_model("lora", "fp32").eval()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        before = compiled(tokens())
        lorafam.accelerate(model)
        torch.testing.assert_close(compiled(tokens()), before, rtol=1e-5, atol=1e-5)
        lorafam.decelerate(model)
        assert torch.equal(compiled(tokens()), before)
