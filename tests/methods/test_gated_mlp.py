"""Gated MLPs that save gate's and up's outputs alone: the same bits, fewer bytes, in every state."""

from __future__ import annotations

import copy
import importlib
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, silu
from torch.utils.checkpoint import checkpoint

import lorafam
from lorafam import AdapterConfig
from lorafam.autograd import gated_activation
from lorafam.methods.gated_mlp import gate_mlps, ungate_mlps

Tensor = torch.Tensor
HIDDEN, INNER, TOKENS, RANK = 64, 96, 24, 4
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor], Tensor]]] = {
    "silu": (nn.SiLU, silu),
    "gelu": (nn.GELU, gelu),
    "gelu_tanh": (lambda: nn.GELU("tanh"), lambda g: gelu(g, approximate="tanh")),
}


class Mlp(nn.Module):
    """As LLaMA's."""

    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(HIDDEN, INNER, bias=False)
        self.up_proj = nn.Linear(HIDDEN, INNER)
        self.down_proj = nn.Linear(INNER, HIDDEN, bias=False)
        self.act_fn = act or nn.SiLU()

    def forward(self, hidden_state: Tensor) -> Tensor:
        """What it computes."""
        down_proj = self.down_proj(self.act_fn(self.gate_proj(hidden_state)) * self.up_proj(hidden_state))
        return down_proj


class InOneStatement(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class OtherWayRound(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x) * self.act_fn(self.gate_proj(x)))


class WithMore(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class Model(nn.Module):
    def __init__(self, kind: type[Mlp] = Mlp, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = kind(act), kind(act)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(x)
        return x + self.second(x)


def model(kind: type[Mlp] = Mlp, act: nn.Module | None = None, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    made = lorafam.adapt(Model(kind, act), AdapterConfig(r=RANK, alpha=8, **config))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return made.train()


def step(made: nn.Module, seed: int = 1) -> tuple[list[Tensor], int]:
    """Y and all gradients; the bytes that were saved for the backward, each memory once."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, TOKENS // 2, HIDDEN, generator=generator).requires_grad_()
    saved: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in [*made.parameters(), *made.buffers()]}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(seed)
    made.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        y = made(x)
    y.backward(torch.randn(y.shape, generator=generator))
    grads = [parameter.grad for parameter in made.parameters() if parameter.grad is not None]
    return [y.detach(), x.grad, *grads], sum(saved.values())  # type: ignore[list-item]


def taken_back(made: nn.Module) -> nn.Module:
    other = copy.deepcopy(made)
    ungate_mlps(other)
    assert type(other.first) in (Mlp, InOneStatement, OtherWayRound, WithMore)
    return other


@pytest.mark.filterwarnings("ignore::lorafam.backends.selection.DetourWarning")
@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_the_activation_as_autograd_has_it(kind: str) -> None:
    g, u, grad = (torch.randn(5, 7) for _ in range(3))
    act = ACTIVATIONS[kind][1]
    found, wanted = [], []
    for result, function in (
        (found, lambda g, u: gated_activation(g, u, kind)),
        (wanted, lambda g, u: act(g) * u),
    ):
        leaves = [one.clone().requires_grad_() for one in (g, u)]
        h = function(*leaves)
        result += [h.detach(), *torch.autograd.grad(h, leaves, grad)]
    assert all(map(torch.equal, found, wanted))
    leaves = [one.double().requires_grad_() for one in (g, u)]
    assert torch.autograd.gradcheck(lambda g, u: gated_activation(g, u, kind), leaves)
    assert torch.autograd.gradgradcheck(lambda g, u: gated_activation(g, u, kind), leaves)


METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora, dropout": {"dropout": 0.3},
    "dora": {"method": "dora"},
    "dora, dropout": {"method": "dora", "dropout": 0.3},
    "dora, input dropout": {"method": "dora", "dropout": 0.3, "dora_dropout": "input"},
    "adalora": {"method": "adalora"},
    "qlora": {"quantize": "nf4"},
    "qdora": {"quantize": "nf4", "method": "dora"},
}


@pytest.mark.parametrize("kind", [Mlp, InOneStatement])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("config", METHODS.values(), ids=METHODS)
def test_the_same_bits_and_fewer_bytes(config: dict[str, Any], act: str, kind: type[Mlp]) -> None:
    made = model(kind, ACTIVATIONS[act][0](), **config)
    assert len(gate_mlps(made)) == 2
    ours, bytes_ = step(made)
    before, more = step(taken_back(made))
    assert all(map(torch.equal, ours, before))
    # act(g) and h of each MLP
    assert more - bytes_ == 2 * 2 * 4 * TOKENS * INNER


def test_what_is_saved() -> None:
    """x, gate's and up's outputs, and ranks."""
    made = model()
    bytes_ = step(made)[1]
    numbers = 2 * HIDDEN + 2 * (2 * INNER + 3 * RANK)
    assert bytes_ <= 4 * TOKENS * numbers


@pytest.mark.parametrize("kind", [OtherWayRound, WithMore])
def test_another_forward_stays(kind: type[Mlp]) -> None:
    assert gate_mlps(model(kind)) == []


@pytest.mark.parametrize("act", [nn.ReLU(), nn.Tanh()])
def test_another_activation_is_as_it_was(act: nn.Module) -> None:
    made = model(act=act)
    assert all(map(torch.equal, step(made)[0], step(taken_back(made))[0]))


def test_transformers_activations() -> None:
    activations = pytest.importorskip("transformers.activations")
    for name in ("silu", "gelu", "gelu_pytorch_tanh", "gelu_new", "relu", "gelu_python", "gelu_python_tanh", "swish"):
        made = model(act=activations.ACT2FN[name])
        ours, bytes_ = step(made)
        before, more = step(taken_back(made))
        assert all(map(torch.equal, ours, before)), name
        assert (more > bytes_) == (name in ("silu", "gelu", "gelu_pytorch_tanh", "swish")), name


@pytest.mark.parametrize("name", ["llama.Llama", "qwen3.Qwen3", "mistral.Mistral", "gemma3.Gemma3", "phi3.Phi3"])
def test_transformers_mlps(name: str) -> None:
    module, kind = name.split(".")
    pytest.importorskip("transformers")
    classes = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    config = importlib.import_module(f"transformers.models.{module}.configuration_{module}")
    of = getattr(config, f"{kind}TextConfig", None) or getattr(config, f"{kind}Config")
    mlp = getattr(classes, f"{kind}MLP")(of(hidden_size=HIDDEN, intermediate_size=INNER))
    # Phi-3 has gate and up in one weight
    assert (gate_mlps(mlp) == ["down_proj"]) == (kind != "Phi3")
    x = torch.randn(2, 3, HIDDEN).requires_grad_()
    (ours,) = torch.autograd.grad(mlp(x).square().sum(), x)
    ungate_mlps(mlp)
    (before,) = torch.autograd.grad(mlp(x).square().sum(), x)
    assert torch.equal(ours, before)


def test_hooks_are_called() -> None:
    made = model()
    seen: list[str] = []
    first: Any = made.first
    for name in ("gate_proj", "act_fn", "up_proj", "down_proj"):
        first.get_submodule(name).register_forward_hook(lambda *args, name=name: seen.append(name))
    ours, _ = step(made)
    assert seen == ["gate_proj", "up_proj", "act_fn", "down_proj"]
    assert all(map(torch.equal, ours, step(taken_back(made))[0]))


def test_what_is_changed_in_place_is_saved() -> None:
    """A hook that changes down's input, or gate's output, after h was made of it."""
    for name in ("down_proj", "up_proj"):
        made = model()
        first: Any = made.first
        if name == "down_proj":
            first.down_proj.register_forward_pre_hook(lambda module, args: (args[0].mul_(2),))
        else:
            first.up_proj.register_forward_hook(lambda module, args, y: y.mul_(2))
        ours = step(made)[0]
        assert all(map(torch.equal, ours, step(taken_back(made))[0])), name


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_checkpointing(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.model, x, use_reentrant=reentrant)

    made = model(dropout=0.2)
    ours = step(Checkpointed(made))[0]
    assert all(map(torch.equal, ours, step(taken_back(made))[0]))


def test_states() -> None:
    made = model()
    x = torch.randn(3, HIDDEN)
    other = taken_back(made)
    with torch.no_grad():
        assert torch.equal(made(x), other(x))
        with lorafam.disabled(made), lorafam.disabled(other):
            assert torch.equal(made(x), other(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x), other(x))
    assert torch.equal(made.eval()(x), other.eval()(x))


@pytest.mark.filterwarnings("ignore::lorafam.backends.selection.DetourWarning")
def test_a_gradient_of_a_gradient() -> None:
    made = model().double()

    def second(made: nn.Module) -> list[Tensor]:
        x = torch.randn(4, HIDDEN, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
        leaves = [x, *(one for one in made.parameters() if one.requires_grad)]
        (grad,) = torch.autograd.grad(made(x).square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(grad.square().sum(), leaves))

    for ours, before in zip(second(made), second(taken_back(made)), strict=True):
        torch.testing.assert_close(ours, before)


def test_compiled() -> None:
    made = model()
    x = torch.randn(TOKENS, HIDDEN)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))
    compiled(x).sum().backward()


def test_copies_and_files() -> None:
    made = model()
    other = copy.deepcopy(made)
    assert all(map(torch.equal, step(made)[0], step(other)[0]))
    file = io.BytesIO()
    torch.save(made, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert all(map(torch.equal, step(made)[0], step(loaded)[0]))
    assert made.state_dict().keys() == loaded.state_dict().keys()
    assert step(made)[1] == step(loaded)[1]
    ungate_mlps(loaded)
    assert type(loaded.first) is Mlp


def test_replicas_of_data_parallel() -> None:
    """A replica shares the dict of the module that it is of, and has other parameters."""
    made = model()
    first: Any = made.first
    replica = first._replicate_for_data_parallel()
    replica.down_proj = nn.Linear(INNER, HIDDEN, bias=False)
    x = torch.randn(3, HIDDEN)
    assert not torch.equal(replica(x), first(x))


def test_hooks_of_accelerate_before_and_after() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    made = model()
    first: Any = made.first
    before = step(made)[0]
    hooks.add_hook_to_module(first, hooks.ModelHook())
    assert all(map(torch.equal, before, step(made)[0]))
    ungate_mlps(made)
    assert all(map(torch.equal, before, step(made)[0]))
    # whose forward is another: it stays
    assert gate_mlps(made) == ["second.down_proj"]
    assert all(map(torch.equal, before, step(made)[0]))


def test_merging_takes_it_back() -> None:
    merged = model()
    lorafam.merge_and_unload(merged)
    assert not [module for module in merged.modules() if "_lorafam" in module.__dict__]
    assert type(merged.first) is Mlp


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_accelerated(dora: bool) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    names = ["gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=RANK, use_dora=dora, target_modules=names, init_lora_weights=False)
    made = peft.get_peft_model(Model(), config)
    exact = step(made)[0]
    report = lorafam.accelerate(made)
    rows = [row for row in report.rows if row.name.endswith("down_proj")]
    assert len(rows) == 2
    assert all("formed again in the backward" in row.reason for row in rows)
    assert not any("formed again" in row.reason for row in report.rows if row not in rows)
    ours, bytes_ = step(made)
    lorafam.decelerate(made)
    assert [type(module) for module in made.modules() if isinstance(module, Mlp)] == [Mlp, Mlp]
    again, more = step(made)
    assert all(map(torch.equal, exact, again))
    assert bytes_ < more
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
