"""Ops called past torch's dispatcher: only where nobody would notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lorafam import functional as F
from lorafam.backends import undispatched
from lorafam.backends.undispatched import call

Call = tuple[str, tuple[Any, ...]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops that didn't go through the dispatcher."""
    names: list[str] = []
    run = undispatched.run
    monkeypatch.setattr(undispatched, "run", lambda op, *args: (names.append(op.name), run(op, *args))[1])
    return names


class Seen(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(str(func))
        return func(*args, **(kwargs or {}))


class Own(torch.Tensor):
    """A tensor of another kind."""


def project() -> Call:
    return "lora_project", (torch.randn(3, 8), torch.randn(2, 8), None, 0.0)


def test_plain_tensors_go_past_the_dispatcher(ran: list[str]) -> None:
    name, args = project()
    found = call(name, *args)
    assert ran == ["lora_project"]
    assert torch.equal(found, torch.ops.lorafam.lora_project(*args))


def test_a_mode_sees_the_ops(ran: list[str]) -> None:
    name, args = project()
    with Seen() as seen:
        call(name, *args)
    assert not ran
    assert any("lorafam.lora_project" in op for op in seen.ops)


def test_the_profiler_sees_the_ops(ran: list[str]) -> None:
    name, args = project()
    with torch.profiler.profile() as profile:
        call(name, *args)
    assert not ran
    assert any(event.key == "lorafam::lora_project" for event in profile.key_averages())


def test_a_trace_sees_the_ops(ran: list[str]) -> None:
    name, args = project()
    traced = torch.jit.trace(lambda x, A: call(name, x, A, None, 0.0), args[:2], check_trace=False)
    assert not ran
    x = torch.randn(3, 8)
    torch.testing.assert_close(traced(x, args[1]), x @ args[1].T)


def test_tensors_of_other_kinds(ran: list[str]) -> None:
    x, A = torch.randn(3, 8), torch.randn(2, 8)
    call("lora_project", x.as_subclass(Own), A, None, 0.0)
    mode = FakeTensorMode()
    fakes = mode.from_tensor(x), mode.from_tensor(A)
    # the mode is off by now: their kind alone tells
    assert call("lora_project", *fakes, None, 0.0).shape == (3, 2)
    call("lora_linear", x, torch.randn(4, 8).as_subclass(Own), [], [], None, None, None, None)
    assert not ran


def test_nothing_is_recorded(ran: list[str]) -> None:
    x, A = torch.randn(3, 8, requires_grad=True), torch.nn.Parameter(torch.randn(2, 8))
    assert not call("lora_project", x, A, None, 0.0).requires_grad
    assert ran == ["lora_project"]


def test_same_checks() -> None:
    with pytest.raises(ValueError, match=r"x: expected \[tokens, 9\], got \[3, 8\]"):
        call("lora_project", torch.randn(3, 8), torch.randn(2, 9), None, 0.0)


def test_a_whole_layer(ran: list[str]) -> None:
    # fp64 goes op by op
    shapes = (3, 8), (5, 8), (2, 8), (5, 2)
    x, W, A, B = (torch.randn(*shape, dtype=torch.float64) for shape in shapes)
    for leaf in (x, A, B):
        leaf.requires_grad_()
    F.lora_linear(x, W, A, B, 2.0).sum().backward()
    assert ran == ["lora_project", "lora_linear", "lora_factors_grad", "lora_linear_grad"]
