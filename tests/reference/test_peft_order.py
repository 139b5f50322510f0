"""PEFT's own layers against the reference in fp64, and bit for bit against `peft_order` in the dtypes people train in.

Dropout is replaced by a fixed mask in PEFT's layer. PEFT's DoRA knows "input" dropout only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, VeraConfig, get_peft_model
from torch import Tensor

from lorafam import reference
from tests.reference.cases import METHODS, SIZES, arguments, autograd_grads
from tests.tolerances import assert_as_good_as_eager

RANK, ALPHA = 4, 7
CONFIGS = {
    "lora": LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.1, target_modules=["0"]),
    "rslora": LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.1, target_modules=["0"], use_rslora=True),
    "dora": LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.1, target_modules=["0"], use_dora=True),
    "adalora": AdaLoraConfig(init_r=RANK, target_r=2, lora_alpha=ALPHA, total_step=9, target_modules=["0"]),
    "vera": VeraConfig(r=RANK, vera_dropout=0.1, target_modules=["0"]),
}
METHOD = {
    "lora": "lora_linear",
    "rslora": "lora_linear",
    "dora": "dora_linear",
    "adalora": "adalora_linear",
    "vera": "vera_linear",
}
DTYPES = [
    pytest.param(torch.float64, torch.float64, id="fp64"),
    pytest.param(torch.float32, torch.float32, id="fp32"),
    pytest.param(torch.bfloat16, torch.bfloat16, id="bf16"),
    pytest.param(torch.bfloat16, torch.float32, id="bf16-adapter-fp32"),
]


class FixedMask(torch.nn.Module):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def peft_and_arguments(
    kind: str, dtype: torch.dtype, adapter_dtype: torch.dtype, *, bias: bool, mask: bool
) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """PEFT's layer in training mode, its parameters by our names, and our arguments that mean the same."""
    sizes = {"in_features": 24, "out_features": 16, "rank": RANK, "leading": (2, 5)}
    given = arguments(METHOD[kind], **sizes, bias=bias, mask=mask, dtype=adapter_dtype)
    for name in ("x", "weight", "bias"):
        given[name] = None if given[name] is None else given[name].to(dtype)
    base = torch.nn.Linear(24, 16, bias=bias)
    layer = get_peft_model(torch.nn.Sequential(base), CONFIGS[kind]).base_model.model[0].train()
    layer.to(adapter_dtype)
    base.to(dtype).weight.data = given["weight"]
    if bias:
        base.bias.data = given["bias"]
    if kind == "vera":
        parameters = {one: getattr(layer, f"vera_lambda_{one}")["default"] for one in "db"}
        for one in "AB":
            getattr(layer, f"vera_{one}")["default"] = given[one].clone()
    elif kind == "adalora":
        parameters = {factor: getattr(layer, f"lora_{factor}")["default"] for factor in "AEB"}
        given["rank_num"] = float(layer.ranknum["default"])
    else:
        parameters = {"A": layer.lora_A["default"].weight, "B": layer.lora_B["default"].weight}
    if kind == "dora":
        parameters["magnitude"] = layer.lora_magnitude_vector["default"].weight
    for name, parameter in parameters.items():
        parameter.data = given[name].clone()
    if kind != "vera":
        given["scaling"] = layer.scaling["default"]
    dropouts = layer.vera_dropout if kind == "vera" else layer.lora_dropout
    dropouts["default"] = FixedMask(given["mask"]) if mask else torch.nn.Identity()
    if kind == "dora":
        given["dora_dropout"] = "input" if mask else "adapter"
    return layer, parameters, given


def peft_results(layer: Any, parameters: dict[str, Tensor], x: Tensor, grad_y: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    grads = torch.autograd.grad(y, [x, *parameters.values()], grad_y)
    return {"y": y.detach(), **dict(zip(["dx", *(f"d{name}" for name in parameters)], grads, strict=True))}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_reference_equals_peft_in_fp64(kind: str, bias: bool, mask: bool) -> None:
    layer, parameters, given = peft_and_arguments(kind, torch.float64, torch.float64, bias=bias, mask=mask)
    grad_y = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theirs = peft_results(layer, parameters, given["x"], grad_y)
    ours = getattr(reference, f"{METHOD[kind]}_grad")(grad_y=grad_y, **given)._asdict()
    ours["y"] = getattr(reference, METHOD[kind])(**given)
    for name, want in theirs.items():
        torch.testing.assert_close(
            ours[name], want, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize(("dtype", "adapter_dtype"), DTYPES)
def test_peft_order_is_peft_bit_for_bit(
    kind: str, bias: bool, mask: bool, dtype: torch.dtype, adapter_dtype: torch.dtype
) -> None:
    layer, parameters, given = peft_and_arguments(kind, dtype, adapter_dtype, bias=bias, mask=mask)
    grad_y = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    theirs = peft_results(layer, parameters, given["x"], grad_y)
    forward = getattr(reference.peft_order, METHOD[kind])
    ours = {"y": forward(**given), **autograd_grads(forward, given, grad_y)}
    for name, want in theirs.items():
        assert ours[name].dtype == want.dtype, name
        assert torch.equal(ours[name], want), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dora_dropout", ["adapter", "input"])
@pytest.mark.parametrize("sizes", SIZES)
def test_both_orders_agree_in_fp64(method: str, dora_dropout: str, sizes: dict[str, Any]) -> None:
    given = arguments(method, **sizes)
    if method == "dora_linear":
        given["dora_dropout"] = dora_dropout
    ours, theirs = getattr(reference, method)(**given), getattr(reference.peft_order, method)(**given)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("mean", [0.0, 0.5])
def test_the_reference_in_fp32_is_as_good_as_eager(method: str, mean: float) -> None:
    """The ratio rule on the reference itself: output, and every gradient of a few seeds pooled."""
    sizes = {"leading": (64,), "in_features": 96, "out_features": 80, "rank": 8, "mean": mean}
    ours: dict[str, list[Tensor]] = {}
    eager: dict[str, list[Tensor]] = {}
    exact: dict[str, list[Tensor]] = {}
    for seed in range(128 if method in ("adalora_linear", "vera_linear") else 16):
        given = arguments(method, **sizes, dtype=torch.float32, seed=seed)
        wide = {name: value.double() if isinstance(value, Tensor) else value for name, value in given.items()}
        grad_y = torch.randn(64, 80, generator=torch.Generator().manual_seed(seed)) + mean
        forward, yardstick = getattr(reference, method), getattr(reference.peft_order, method)
        gradient = getattr(reference, f"{method}_grad")
        for results, found in (
            (ours, {"y": forward(**given), **gradient(grad_y=grad_y, **given)._asdict()}),
            (eager, {"y": yardstick(**given), **autograd_grads(yardstick, given, grad_y)}),
            (exact, {"y": forward(**wide), **gradient(grad_y=grad_y.double(), **wide)._asdict()}),
        ):
            for name, tensor in found.items():
                results.setdefault(name, []).append(tensor)
    for name in exact:
        assert_as_good_as_eager(ours[name], eager[name], exact[name], name=f"{method} {name}")
