"""Bases quantised by other libraries: the base's own forward, then the fused low-rank update, as PEFT's results say.

HQQ and torchao run here; GPTQ, AWQ, AQLM and Transformer Engine need a GPU or their library, so that PEFT's classes for
them get a base of the same interface.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from torch import nn

import lorafam

IN, OUT, RANK = 64, 128, 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(IN, OUT), nn.Linear(OUT, IN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))


class Rounded(nn.Module):
    """A base as GPTQ's and AWQ's are: packed integers, sizes, a forward, and no `weight`."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.infeatures, self.outfeatures = dense.in_features, dense.out_features
        self.scale = float(dense.weight.detach().abs().max()) / 127
        self.register_buffer("qweight", (dense.weight.detach() / self.scale).round().to(torch.int8))
        self.register_buffer("bias", dense.bias.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.qweight.to(x.dtype) * self.scale, self.bias.to(x.dtype))


def hqq(net: Net) -> Net:
    pytest.importorskip("hqq", reason="needs hqq, which the dev extra installs")
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    for name in ("up", "down"):
        settings = BaseQuantizeConfig(nbits=4, group_size=64)
        setattr(net, name, HQQLinear(getattr(net, name), settings, compute_dtype=torch.float32, device="cpu"))
    return net


def torchao(net: Net) -> Net:
    pytest.importorskip("torchao", reason="needs torchao, which the dev extra installs")
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(net, Int8WeightOnlyConfig())
    return net


def quantised_net(quantise: Callable[[Net], Net], config: LoraConfig) -> Any:
    torch.manual_seed(0)
    return get_peft_model(quantise(Net()), config)


def stand_in(module: str, name: str, config: LoraConfig) -> Any:
    torch.manual_seed(0)
    layer = getattr(importlib.import_module(module), name)
    net = Net()
    for part in ("up", "down"):
        setattr(net, part, layer(Rounded(getattr(net, part)), "default", config=config, r=RANK, lora_alpha=8))
    return net


def results(net: nn.Module, dtype: torch.dtype) -> list[torch.Tensor]:
    x = torch.randn(3, 7, IN, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    net.zero_grad()
    y = net(x)
    y.square().sum().backward()
    assert y.dtype == dtype
    return [y, x.grad, *(p.grad for p in net.parameters() if p.grad is not None)]  # type: ignore[list-item]


def compare(make: Callable[[], Any], dtype: torch.dtype = torch.float32) -> None:
    plain, fast = make(), make()
    for net in (plain, fast):
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    before = results(fast, dtype)
    assert lorafam.accelerate(fast).count("base + low rank") == 2
    expected, found = results(plain, dtype), results(fast, dtype)
    for mine, right in zip(found, expected, strict=True):
        assert (mine - right).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * right.norm()
    lorafam.decelerate(fast)
    assert all(torch.equal(a, b) for a, b in zip(results(fast, dtype), before, strict=True))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("quantise", [hqq, torchao])
def test_libraries_that_run_here(quantise: Callable[[Net], Net], settings: dict[str, Any]) -> None:
    config = LoraConfig(r=RANK, lora_alpha=8, target_modules=["up", "down"], init_lora_weights=False, **settings)
    compare(lambda: quantised_net(quantise, config))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("peft.tuners.lora.gptq", "GPTQLoraLinear"),
        ("peft.tuners.lora.awq", "AwqLoraLinear"),
        ("peft.tuners.lora.aqlm", "AqlmLoraLinear"),
        ("peft.tuners.lora.te", "TeLinear"),
        ("peft.tuners.adalora.gptq", "SVDQuantLinear"),
    ],
)
def test_classes_whose_libraries_are_not_here(module: str, name: str, dtype: torch.dtype) -> None:
    config: LoraConfig = LoraConfig(r=RANK, init_lora_weights=False)
    if name == "SVDQuantLinear":
        config = AdaLoraConfig(init_r=RANK, total_step=9)
    compare(lambda: stand_in(module, name, config), dtype)
