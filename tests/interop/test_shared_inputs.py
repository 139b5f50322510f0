"""q, k and v computed together: right whatever happens between their calls, apart where it isn't safe, and said so."""

from __future__ import annotations

import copy
import io
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint

import lorafam
from lorafam.interop import shared_inputs
from tests.interop.tiny_lm import HIDDEN, TARGETS, Block, disturb, peft_model, quantise, trainable

Tensor = torch.Tensor


def _nothing(_: Any, x: Tensor) -> Tensor:
    return x


class Attention(nn.Module):
    """Projections of one x, with something done between their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(HIDDEN, size) for size in (HIDDEN, 32, 32))
        self.between: Callable[[Any, Tensor], Tensor] = _nothing

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q = self.q_proj(x)
        x = self.between(self, x)
        return q, self.k_proj(x), self.v_proj(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.attention(x)


def model_of(module: type[nn.Module] = Model, **settings: Any) -> Any:
    torch.manual_seed(0)
    settings = {"target_modules": ["q_proj", "k_proj", "v_proj"], **settings}
    model = get_peft_model(module(), LoraConfig(r=4, **settings))
    disturb(model)
    return model


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers each call computed together."""
    counts: list[int] = []
    real = shared_inputs.together

    def together(layers: list[Any], *args: Any) -> Any:
        counts.append(len(layers))
        return real(layers, *args)

    monkeypatch.setattr(shared_inputs, "together", together)
    return counts


def attention(model: Any) -> Any:
    return model.base_model.model.attention


def inputs() -> Tensor:
    return torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1)).requires_grad_()


def results(model: Any, x: Tensor | None = None) -> list[Tensor]:
    """Outputs and every gradient."""
    x = inputs() if x is None else x
    ys = model(x)
    leaves = [x, *trainable(model).values()]
    grads = torch.autograd.grad(sum(y.square().sum() for y in ys), leaves, allow_unused=True)
    return [*(y.detach() for y in ys), *(torch.zeros(()) if grad is None else grad for grad in grads)]


def same(found: list[Tensor], expected: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-5)


def pair(**settings: Any) -> tuple[Any, Any]:
    plain, fast = model_of(**settings), model_of(**settings)
    lorafam.accelerate(fast)
    return plain, fast


@pytest.mark.parametrize("settings", [{}, {"rank_pattern": {"k_proj": 2}}, {"use_rslora": True}, {"lora_bias": True}])
def test_as_peft_has_it(settings: dict[str, Any], made: list[int]) -> None:
    plain, fast = pair(**settings)
    same(results(fast), results(plain))
    with torch.no_grad():
        same(list(fast(inputs())), list(plain(inputs())))
    assert made == [3, 3]


@pytest.mark.parametrize("method", ["lora", "adalora", "lora_bias"])
@pytest.mark.parametrize("base", ["fp32", "bf16", "nf4"])
def test_every_method_and_storage_that_can(method: str, base: str, made: list[int]) -> None:
    model = peft_model(method, base)
    report = lorafam.accelerate(model)
    model(torch.zeros(1, 3, dtype=torch.long))
    assert made == [3]
    assert [row.reason.split("; ")[1] for row in report.rows[:3]] == [
        "with k, v, one x",
        "with q, v, one x",
        "with q, k, one x",
    ]


def test_under_autocast(made: list[int]) -> None:
    plain, fast = pair()
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(fast(inputs()), plain(inputs()), strict=True):
            assert a.dtype == b.dtype == torch.bfloat16
            torch.testing.assert_close(a, b, rtol=3e-2, atol=3e-2)
    assert made == [3]


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_checkpointing(reentrant: bool, made: list[int]) -> None:
    plain, fast = pair()
    expected = results(plain)
    x = inputs()
    found = checkpoint(fast, x, use_reentrant=reentrant)
    assert made == [3]
    sum(y.square().sum() for y in found).backward()
    assert made == [3, 3]
    same([x.grad, *(parameter.grad for parameter in trainable(fast).values())], expected[3:])


def _in_place(_: Any, x: Tensor) -> Tensor:
    return x.detach().add_(1)


def _same_memory(_: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.add_(1)
    return x


def _disable(module: Any, x: Tensor) -> Tensor:
    module.k_proj.enable_adapters(False)
    return x


def _merge(module: Any, x: Tensor) -> Tensor:
    module.k_proj.merge()
    return x


@pytest.mark.parametrize("between", [_in_place, _same_memory, _disable, _merge])
def test_what_happens_between_two_calls(between: Callable[..., Tensor], made: list[int]) -> None:
    plain, fast = pair()
    for model in (plain, fast):
        attention(model).between = between
    with torch.no_grad():
        same(list(fast(inputs().detach())), list(plain(inputs().detach())))
    assert made == [3]


def test_a_mode_that_changes_between_two_calls() -> None:
    _, fast = pair()
    layers = attention(fast)
    x = inputs()
    with torch.no_grad():
        layers.q_proj(x)
    assert layers.k_proj(x).requires_grad
    layers.q_proj(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert layers.v_proj(x).dtype == torch.bfloat16


def test_nothing_is_kept_once_all_have_been_called() -> None:
    _, fast = pair()
    x = inputs()
    fast(x)
    reference = weakref.ref(x)
    del x
    assert reference() is None


def test_a_model_is_freed_at_once() -> None:
    fast = model_of(Model)
    lorafam.accelerate(fast)
    fast(inputs())
    layer = weakref.ref(attention(fast).q_proj.base_layer.weight)
    del fast
    assert layer() is None


def test_another_input_ends_it(made: list[int]) -> None:
    plain, fast = pair()
    for model in (plain, fast):
        attention(model).between = lambda _, x: x * 2
    same(results(fast), results(plain))
    same(results(fast), results(plain))
    assert made == [3]
    reasons = [row.reason for row in lorafam.accelerate(fast).rows]
    # a new accelerate tries again
    assert reasons[0] == "dense weight; with k_proj, v_proj, one x"


def test_another_input_under_checkpointing(made: list[int]) -> None:
    """The forward that is run again does what it did: torch would refuse other saved tensors."""
    plain, fast = pair()
    for model in (plain, fast):
        attention(model).between = lambda _, x: x * 2
    x = inputs()
    sum(y.square().sum() for y in checkpoint(fast, x, use_reentrant=False)).backward()
    same([x.grad, *(parameter.grad for parameter in trainable(fast).values())], results(plain)[3:])
    assert made == [3, 3]


class CrossAttention(Attention):
    def forward(self, x: Tensor, key_value_states: Tensor | None = None) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(x)


class CrossModel(Model):
    def __init__(self) -> None:
        super().__init__()
        self.attention = CrossAttention()


def test_modules_that_may_get_two_inputs_are_left_alone(made: list[int]) -> None:
    fast = model_of(CrossModel)
    assert [row.reason for row in lorafam.accelerate(fast).rows] == ["dense weight"] * 3
    fast(inputs())
    assert made == []


def test_threads_do_not_meet(made: list[int]) -> None:
    _, fast = pair()
    expected = [list(fast(inputs() * i)) for i in range(4)]
    wrong: list[int] = []

    def run(i: int) -> None:
        for _ in range(20):
            with torch.no_grad():
                found = fast(inputs() * i)
            if not all(torch.equal(a, b) for a, b in zip(found, expected[i], strict=True)):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert made == [3] * 84


def test_copies_keep_together_and_apart_from_the_original(made: list[int]) -> None:
    _, fast = pair()
    expected = results(fast)
    file = io.BytesIO()
    torch.save(fast.base_model.model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.deepcopy(fast), loaded):
        made.clear()
        assert all(torch.equal(a, b) for a, b in zip(results(other), expected, strict=True))
        assert made == [3]
    alone = copy.deepcopy(attention(fast).q_proj)
    made.clear()
    torch.testing.assert_close(alone(inputs()), expected[0])
    shallow = copy.copy(attention(fast).k_proj)
    assert torch.equal(shallow(inputs()), attention(fast).k_proj(inputs()))
    assert made == []


def _rows(change: Callable[[Any], object]) -> list[str]:
    model = model_of()
    change(model)
    return [row.reason.removeprefix("dense weight") for row in lorafam.accelerate(model).rows]


def _hook(model: Any) -> None:
    attention(model).v_proj.register_forward_pre_hook(lambda *_: None)


def _quantised(model: Any) -> None:
    layers = attention(model)
    layers.k_proj.base_layer = lorafam.NF4Linear.from_linear(layers.k_proj.base_layer)


def _merged(model: Any) -> None:
    attention(model).k_proj.merge()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (id, [f"; with {others}, one x" for others in ("k_proj, v_proj", "q_proj, v_proj", "q_proj, k_proj")]),
        (_hook, ["; not with k_proj, v_proj: v_proj: hooks"]),
        (_merged, [
            "; not with k_proj, v_proj: k_proj: its path is PEFT",
            "default is merged: the base layer runs alone"]),
        (_quantised, ["; not with k_proj, v_proj: dense and 4-bit weights"]),
    ],
)  # fmt: skip
def test_the_report_says_why(change: Callable[[Any], object], expected: list[str]) -> None:
    assert _rows(change)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lora_dropout": 0.1}, "q_proj: dropout draws a mask for each"),
        ({"use_dora": True}, "q_proj: DoRA scales its own output"),
    ],
)
def test_methods_that_are_computed_apart(settings: dict[str, Any], reason: str, made: list[int]) -> None:
    model = model_of(**settings)
    report = lorafam.accelerate(model)
    assert report.rows[0].reason == f"dense weight; not with k_proj, v_proj: {reason}"
    model(inputs())
    assert made == []
    if "lora_dropout" in settings:
        # in evaluation nothing is dropped
        model.eval()(inputs())
        assert made == [3]


def test_a_layer_taken_back_alone(made: list[int]) -> None:
    plain, fast = pair()
    lorafam.decelerate(attention(fast).k_proj)
    same(results(fast), results(plain))
    assert made == []
    assert lorafam.accelerate(fast).rows[0].reason == "dense weight; with k_proj, v_proj, one x"
    same(results(fast), results(plain))
    assert made == [3]


def test_inference_tensors_have_no_version(made: list[int]) -> None:
    plain, fast = pair()
    with torch.inference_mode():
        same(list(fast(inputs().clone())), list(plain(inputs().clone())))
    assert made == []


def test_only_those_with_adapters(made: list[int]) -> None:
    model = model_of(target_modules=["q_proj", "v_proj"])
    lorafam.accelerate(model)
    model(inputs())
    assert made == [2]


def test_a_block_of_four_bits_without_gradients() -> None:
    """One token: all in one call of the kernel; the same bits as with gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(quantise(Block(), "nf4"))
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    fast = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS))
    disturb(fast)
    lorafam.accelerate(fast)
    x = torch.randn(1, 1, HIDDEN)
    recorded = fast(x)
    with torch.no_grad():
        assert torch.equal(fast(x), recorded)
