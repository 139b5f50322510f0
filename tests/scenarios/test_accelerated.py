"""Accelerated PEFT in states of its own: swapped scalings, mixed dtypes, layers without tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap
from torch import nn
from transformers.pytorch_utils import Conv1D

import lorafam
from lorafam.backends import selection
from tests.interop.test_experts import batch, model_of

PEFT_WAYS = pytest.mark.parametrize("fast", [False, True], ids=["PEFT", "accelerated"])


class Attention(nn.Module):
    """Three projections of one x."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q_proj(x) + self.k_proj(x) * self.v_proj(x)


def model(fast: bool, alpha: float = 8, accelerate_first: bool = True, **settings: object) -> nn.Module:
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=alpha, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False, **settings
    )
    made = get_peft_model(Attention(), config)
    if fast and accelerate_first:
        lorafam.accelerate(made)
    return made


@pytest.mark.parametrize("accelerate_first", [True, False])
@pytest.mark.parametrize("alpha", [64.0, 3.0])
@torch.no_grad()
def test_a_prepared_hot_swap_takes_the_new_scaling(tmp_path: Path, accelerate_first: bool, alpha: float) -> None:
    torch.manual_seed(5)
    model(False, alpha).save_pretrained(tmp_path)
    x, outputs = torch.randn(3, 32), []
    for fast in (False, True):
        one = model(fast, accelerate_first=accelerate_first).eval()
        prepare_model_for_compiled_hotswap(one)
        if fast:
            lorafam.accelerate(one)
        first = one(x)
        hotswap_adapter(one, str(tmp_path), "default", torch_device="cpu")
        outputs.append(one(x))
        assert not torch.allclose(outputs[-1], first, atol=1e-2)
        for layer in (one.base_model.model.q_proj, one.base_model.model.v_proj):
            layer.scale_layer(0.5)
        outputs.append(one(x))
        lorafam.decelerate(one)
        torch.testing.assert_close(one(x), outputs[-1])
    torch.testing.assert_close(outputs[2:], outputs[:2])


@PEFT_WAYS
@pytest.mark.parametrize("adapter", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("active", [["default"], ["default", "b"]])
def test_a_16_bit_adapter_under_autocast(
    fast: bool, adapter: torch.dtype, autocast: torch.dtype, active: list[str]
) -> None:
    one = model(fast)
    one.add_adapter("b", one.peft_config["default"])
    one.base_model.set_adapter(active)
    for name, parameter in one.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.to(adapter)
    x = torch.randn(5, 32)
    with torch.autocast("cpu", autocast):
        y = one(x)
        y.float().square().sum().backward()
    reference = model(False)
    reference.add_adapter("b", reference.peft_config["default"])
    reference.base_model.set_adapter(active)
    reference.load_state_dict(one.state_dict())
    wanted = reference(x)
    assert (y.float() - wanted).norm() / wanted.norm() < 0.02
    for name, parameter in one.named_parameters():
        if parameter.requires_grad and any(f".{adapter_name}." in name for adapter_name in active):
            assert parameter.grad is not None, name


@PEFT_WAYS
@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)])
def test_a_layer_without_tokens(fast: bool, method: str, dropout: float, shape: tuple[int, ...]) -> None:
    one = model(fast, use_dora=method == "dora", lora_dropout=dropout).train()
    y = one(torch.empty(shape, requires_grad=True))
    assert y.shape == shape
    y.sum().backward()
    for name, parameter in one.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert not parameter.grad.any(), name


def autocast(one: Any, x: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        one(x)


def compiled(one: Any, x: torch.Tensor) -> None:
    torch.compile(one, backend="eager")(x)


def hooked(one: Any, x: torch.Tensor) -> None:
    next(module for name, module in one.named_modules() if name.endswith("lora_A.default")).register_forward_hook(
        lambda *_: None
    )
    one(x)


def transformed(one: Any, x: torch.Tensor) -> None:
    torch.func.vmap(one)(x.unsqueeze(0))


def told(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(selection, "_TOLD", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(one.message) for one in caught if issubclass(one.category, selection.DetourWarning)]


@pytest.mark.parametrize(
    ("use", "reason"),
    [(autocast, "autocast"), (compiled, "a compiled graph has the experts' own code")],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_experts_that_go_pefts_way_are_told(use: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = model_of("mixtral")
    # torch 2.10 doesn't compile grouped_mm in fp32, whoever calls it
    one.get_base_model().set_experts_implementation("batched_mm")
    experts = [row for row in lorafam.accelerate(one).rows if row.name.endswith("experts")]
    assert [row.path for row in experts] == ["fused"]
    assert "PEFT's way under autocast and in a compiled graph" in experts[0].reason

    def twice() -> None:
        use(one, batch())
        use(one, batch())

    assert told(twice, monkeypatch) == [f"accelerate: PEFT where the report says fused: {reason}"]
    assert not told(lambda: one(batch()), monkeypatch)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (hooked, "hooks on the adapter's modules: they run"),
        (transformed, "traced, vectorised or differentiated forward"),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)
def test_layers_that_go_pefts_way_are_told(use: Any, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = model(True), torch.randn(3, 32)
    (message,) = told(lambda: (use(one, x), one(x)), monkeypatch)
    assert message.startswith(f"accelerate: PEFT where the report says fused: {reason}")


def test_what_a_user_asks_for_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    one, x = model(True), torch.randn(3, 32)

    def use() -> None:
        one(x)
        with one.disable_adapter():
            one(x)
        compiled(one, x)
        autocast(one, x)
        one.merge_adapter()
        one(x)

    assert not told(use, monkeypatch)


@PEFT_WAYS
@pytest.mark.parametrize("out_features", [32, 48])
@pytest.mark.parametrize("how", ["a trained base", "a hook"])
def test_doras_norm_of_a_conv1d_whose_own_forward_runs(fast: bool, out_features: int, how: str) -> None:
    """A square one's norm would be that of the other axis, without a word."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"c_proj": Conv1D(out_features, 32)})
    config = LoraConfig(r=4, target_modules=["c_proj"], use_dora=True, init_lora_weights=False, fan_in_fan_out=True)
    adapted: Any = get_peft_model(net, config)
    layer = adapted.base_model.model["c_proj"]
    if fast:
        lorafam.accelerate(adapted)
    if how == "a hook":
        layer.base_layer.register_forward_hook(lambda module, args, y: y + 0)
    else:
        adapted.requires_grad_(True)
    x = torch.randn(5, 32)
    W = layer.base_layer.weight.detach().double().T
    V = W + layer.scaling["default"] * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).double()
    c = layer.lora_magnitude_vector["default"].weight.double() / V.norm(dim=1)
    wanted = x.double() @ (V * c.unsqueeze(1)).T + layer.base_layer.bias.double()
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-4, atol=1e-5)
