"""LoRA+'s groups, beside PEFT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lorafam
from lorafam import lora_plus_groups


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.first, self.norm, self.second = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.norm(self.first(self.embedding(x))))


@pytest.mark.parametrize("use_dora", [False, True])
def test_as_peft_groups(use_dora: bool) -> None:
    peft, optimizers = pytest.importorskip("peft"), pytest.importorskip("peft.optimizers")
    config = peft.LoraConfig(
        target_modules=["embedding", "first", "second"], use_dora=use_dora, bias="all", modules_to_save=["norm"]
    )
    model = peft.get_peft_model(Small(), config)
    expected = optimizers.create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, loraplus_weight_decay=0.1
    ).param_groups
    mine = lora_plus_groups(model, 1e-3, 16, 0.1)

    def told(groups: list[dict[str, Any]]) -> dict[int, tuple[float, float]]:
        return {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}

    assert told(mine) == told(expected)
    assert len(told(mine)) == sum(p.requires_grad for p in model.parameters())
    lorafam.PagedAdamW(mine)


@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_lorafam_s_layers(method: str) -> None:
    model = lorafam.adapt(Small(), lorafam.AdapterConfig(method=method, r=2, target_modules=["first", "second"]))
    groups = lora_plus_groups(model, 1e-3, 4)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    found = {name: rates[id(p)] for name, p in model.named_parameters() if p.requires_grad}
    assert len(found) == {"lora": 4, "dora": 6, "adalora": 6}[method]
    for name, rate in found.items():
        assert rate == (4e-3 if name.rpartition(".")[2] in ("B", "magnitude") else 1e-3), name


@pytest.mark.parametrize("name", ["lr", "ratio", "weight_decay", "embedding_lr"])
def test_wrong_numbers_are_named(name: str) -> None:
    model = lorafam.adapt(Small(), lorafam.AdapterConfig(r=2, target_modules=["first"]))
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        lora_plus_groups(model, **{"lr": 1e-3, "ratio": 4.0, name: -1.0})
    with pytest.raises(ValueError, match=r"^ratio: expected"):
        lora_plus_groups(model, 1e-3, 0)


def test_a_model_without_adapters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^model: expected"):
        lora_plus_groups(Small(), 1e-3, 4)
