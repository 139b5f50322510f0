"""The same small model four ways: plain PEFT, PEFT accelerated, lorafam's own layers on dense and on 4-bit weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import lorafam

Tensor = torch.Tensor
K, N = 64, 48
WAYS = ("PEFT", "accelerated", "dense", "nf4")
each_way = pytest.mark.parametrize("way", WAYS)
each_own = pytest.mark.parametrize("way", WAYS[2:])


class Factors(NamedTuple):
    """An adapter's tensors, as parameters of the model, and its scaling."""

    A: Tensor
    B: Tensor
    scaling: float
    magnitude: Tensor | None


class Model:
    """`net` with one adapted layer; the same calls whoever's layer it is."""

    def __init__(self, way: str, names: Sequence[str] = ("default",), base: nn.Module | None = None, **settings: Any):
        torch.manual_seed(0)
        self.way, self.peft = way, way in WAYS[:2]
        base = nn.Linear(K, N) if base is None else base
        net = nn.Sequential(base)
        settings = {"r": 4, "alpha": 8, "dropout": 0.0, "method": "lora"} | settings
        if self.peft:
            config = LoraConfig(
                r=settings["r"],
                lora_alpha=settings["alpha"],
                lora_dropout=settings["dropout"],
                use_dora=settings["method"] == "dora",
                lora_bias=settings.get("bias", False),
                target_modules=["0"],
            )
            self.net: Any = get_peft_model(net, config)
            for name in names[1:]:
                self.net.add_adapter(name, config)
            self.layer = self.net.base_model.model[0]
            if way == "accelerated":
                lorafam.accelerate(self.net)
        else:
            quantize = "nf4" if way == "nf4" else None
            self.net = lorafam.adapt(net, lorafam.AdapterConfig(target_modules=["0"], quantize=quantize, **settings))
            for name in names[1:]:
                lorafam.add_adapter(self.net, name)
            self.layer = self.net[0]
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name in names:
                for tensor in self.factors(name)[:2]:
                    tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)

    def __call__(self, x: Tensor) -> Tensor:
        return self.net(x)

    def eval(self) -> Model:
        self.net.eval()
        return self

    @property
    def base(self) -> Any:
        return self.layer.base_layer

    def weight(self) -> Tensor:
        """W in fp64."""
        weight = self.base.weight
        if isinstance(weight, Tensor) and weight.is_floating_point():
            return weight.detach().double()
        return lorafam.methods.base_weight.own_weight(self.base).dequantize(torch.float32).double()

    def factors(self, name: str = "default") -> Factors:
        if self.peft:
            magnitude = self.layer.lora_magnitude_vector
            return Factors(
                self.layer.lora_A[name].weight,
                self.layer.lora_B[name].weight,
                self.layer.scaling[name],
                magnitude[name].weight if name in magnitude else None,
            )
        adapter = self.layer.adapters[name]
        return Factors(adapter.A, adapter.B, adapter.scaling, getattr(adapter, "magnitude", None))

    def wanted(self, x: Tensor, name: str | None = "default", weight: Tensor | None = None) -> Tensor:
        """In fp64, from the formulae; `name` None: the base's output."""
        W = self.weight() if weight is None else weight
        bias = self.base.bias.detach().double()
        if name is None:
            return x.double() @ W.T + bias
        A, B, scaling, magnitude = self.factors(name)
        V = W + scaling * B.detach().double() @ A.detach().double()
        if magnitude is not None:
            V = V * (magnitude.detach().double() / V.norm(dim=1)).unsqueeze(1)
        return x.double() @ V.T + bias

    def merge(self) -> None:
        self.layer.merge()

    def set_adapter(self, name: str) -> None:
        if self.peft:
            self.net.set_adapter(name)
        else:
            lorafam.set_adapter(self.net, name)

    @contextlib.contextmanager
    def disabled(self) -> Iterator[None]:
        with self.net.disable_adapter() if self.peft else lorafam.disabled(self.net):
            yield

    def by_row(self, x: Tensor, names: Sequence[str | None]) -> Tensor:
        if self.peft:
            return self.net(x, adapter_names=["__base__" if name is None else name for name in names])
        with lorafam.adapters_by_row(self.net, names):
            return self.net(x)


def tokens(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(*shape, K, generator=torch.Generator().manual_seed(seed))


def near(y: Tensor, wanted: Tensor, error: float = 2e-5) -> None:
    """Relative to the whole."""
    difference = (y.detach().double() - wanted).norm() / wanted.norm()
    assert difference < error, f"{difference:.2e} off"
