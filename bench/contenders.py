"""The three that are timed on one layer: lorafam, eager PyTorch in PEFT's order of operations, and PEFT + bitsandbytes.

All have the same weight, adapter values and input. `forward` gives Y; `train` gives Y and the gradients of x and of
every adapter tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorafam.methods import METHODS, AdapterLayer, NF4Linear
from lorafam.reference import peft_order
from lorafam.weights import NF4Weight

Tensor = torch.Tensor
CONTENDERS = ("lorafam", "eager", "peft")
# title → (method, quantised base)
CASES = {"lora": ("lora", False), "qlora": ("lora", True), "qdora": ("dora", True), "adalora": ("adalora", True)}
LEAVES = ("A", "E", "B", "magnitude")


@dataclass
class Case:
    """One layer, square, at one number of tokens."""

    name: str
    size: int
    tokens: int
    dtype: torch.dtype
    rank: int
    layer: AdapterLayer
    x: Tensor
    grad_y: Tensor

    @property
    def method(self) -> str:
        return CASES[self.name][0]

    def leaves(self) -> dict[str, Tensor]:
        """The adapter's tensors, by their names in `functional`."""
        return {name: getattr(self.layer, name) for name in LEAVES if hasattr(self.layer, name)}

    def settings(self) -> dict[str, Any]:
        """The arguments of a method that aren't tensors."""
        settings: dict[str, Any] = {"scaling": self.layer.active.scaling}
        if self.method == "adalora":
            settings["rank_num"] = self.layer.rank_num
        return settings


def make_case(
    name: str, size: int, tokens: int, dtype: torch.dtype = torch.float32, rank: int = 16, device: str = "cpu"
) -> Case:
    """Random but fixed values; nothing of the adapter is zero, as after training."""
    method, quantised = CASES[name]
    generator = torch.Generator().manual_seed(size + tokens)

    def random(*shape: int, scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device)

    torch.manual_seed(size + tokens)
    dense = nn.Linear(size, size, bias=False)
    dense.weight = nn.Parameter(random(size, size, scale=size**-0.5).to(dtype), requires_grad=False)
    layer = METHODS[method](NF4Linear.from_linear(dense) if quantised else dense, r=rank, alpha=rank)
    with torch.no_grad():
        for leaf in layer.active.parameters():
            leaf.add_(random(*leaf.shape, scale=0.02))
    x = random(tokens, size, scale=1.0).to(dtype).requires_grad_()
    grad_y = random(tokens, size, scale=1.0).to(dtype)
    return Case(name, size, tokens, dtype, rank, layer.train(), x, grad_y)


def forward_of(contender: str, case: Case) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The contender's forward on the case's input, and the adapter tensors it differentiates, in the order of
    `case.leaves()`.
    """
    if contender == "lorafam":
        return lambda: case.layer(case.x), list(case.leaves().values())
    if contender == "eager":
        return _eager(case)
    return _peft(case)


def train_of(contender: str, case: Case) -> Callable[[], tuple[Tensor, ...]]:
    """Forward and backward: (Y, dx, gradient of each leaf)."""
    forward, leaves = forward_of(contender, case)

    def train() -> tuple[Tensor, ...]:
        y = forward()
        return (y.detach(), *torch.autograd.grad(y, [case.x, *leaves], case.grad_y))

    return train


def _eager(case: Case) -> tuple[Callable[[], Tensor], list[Tensor]]:
    leaves = {name: leaf.detach().clone().requires_grad_() for name, leaf in case.leaves().items()}
    function = getattr(peft_order, f"{case.method}_linear")
    decode = _decoder(case)

    def forward() -> Tensor:
        return function(x=case.x, weight=decode(), **leaves, **case.settings())

    return forward, list(leaves.values())


def _decoder(case: Case) -> Callable[[], Tensor]:
    """The dense weight; of a 4-bit one as bitsandbytes decodes it, on each call."""
    weight = case.layer.base_layer.weight
    if not isinstance(weight, NF4Weight):
        return lambda: weight  # type: ignore[return-value]
    import bitsandbytes

    packed = weight.to_bitsandbytes()
    return lambda: bitsandbytes.functional.dequantize_4bit(packed.data, packed.quant_state).to(case.dtype)


def _peft(case: Case) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """PEFT's own layer for this base, holding the case's values."""
    import bitsandbytes
    import peft

    weight = case.layer.base_layer.weight
    holder = nn.Sequential()
    if isinstance(weight, NF4Weight):
        base: Any = bitsandbytes.nn.Linear4bit(case.size, case.size, bias=False, compute_dtype=case.dtype)
        base.weight = weight.to_bitsandbytes()
        base.quant_state = base.weight.quant_state
        base.support_avx512bf16_for_cpu = False
        holder.is_loaded_in_4bit = True  # type: ignore[assignment]
    else:
        base = nn.Linear(case.size, case.size, bias=False)
        base.weight = nn.Parameter(weight, requires_grad=False)  # type: ignore[arg-type]
    holder.add_module("linear", base)
    if case.method == "adalora":
        config: Any = peft.AdaLoraConfig(
            init_r=case.rank, target_r=case.rank, lora_alpha=case.rank, total_step=1, target_modules=["linear"]
        )
    else:
        config = peft.LoraConfig(
            r=case.rank, lora_alpha=case.rank, use_dora=case.method == "dora", target_modules=["linear"]
        )
    layer: Any = peft.inject_adapter_in_model(config, holder).linear.train()
    if case.method == "adalora":
        leaves = [layer.lora_A["default"], layer.lora_E["default"], layer.lora_B["default"]]
    else:
        leaves = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        if case.method == "dora":
            leaves.append(layer.lora_magnitude_vector["default"].weight)
    for leaf, value in zip(leaves, case.leaves().values(), strict=True):
        # PEFT made them in the base's dtype; adapters are fp32 for all contenders
        leaf.data = value.detach().clone()
        leaf.requires_grad_()
    return lambda: layer(case.x), leaves
