"""One adapter layer with its input: what every contender of the benchmark computes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorafam.methods import METHODS, AdapterLayer, NF4Linear

Tensor = torch.Tensor
# title → (method, quantised base)
CASES = {"lora": ("lora", False), "qlora": ("lora", True), "qdora": ("dora", True), "adalora": ("adalora", True)}
LEAVES = ("A", "E", "B", "magnitude")


@dataclass
class Case:
    """One layer at one number of tokens."""

    name: str
    out_features: int
    in_features: int
    tokens: int
    dtype: torch.dtype
    rank: int
    layer: AdapterLayer
    x: Tensor
    grad_y: Tensor
    # None: as the layer has them
    adapter_dtype: torch.dtype | None = None

    @property
    def method(self) -> str:
        return CASES[self.name][0]

    def leaves(self) -> dict[str, Tensor]:
        """The adapter's tensors, by their names in `functional`; copies where `adapter_dtype` is another."""
        found = {name: getattr(self.layer, name) for name in LEAVES if hasattr(self.layer, name)}
        if self.adapter_dtype is None:
            return found
        return {name: leaf.detach().to(self.adapter_dtype) for name, leaf in found.items()}

    def narrowed(self) -> Case:
        """The same with the adapter in x's dtype, for those whose kernels multiply in one dtype."""
        return dataclasses.replace(self, adapter_dtype=self.dtype)

    def settings(self) -> dict[str, Any]:
        """The arguments of a method that aren't tensors."""
        settings: dict[str, Any] = {"scaling": self.layer.active.scaling}
        if self.method == "adalora":
            settings["rank_num"] = self.layer.rank_num
        return settings


def make_case(
    name: str,
    size: int | tuple[int, int],
    tokens: int,
    dtype: torch.dtype = torch.float32,
    rank: int = 16,
    device: str = "cpu",
) -> Case:
    """Random but fixed values; nothing of the adapter is zero, as after training. `size` is (out, in features)."""
    method, quantised = CASES[name]
    rows, columns = (size, size) if isinstance(size, int) else size
    generator = torch.Generator().manual_seed(columns + tokens)

    def random(*shape: int, scale: float) -> Tensor:
        return (torch.randn(shape, generator=generator) * scale).to(device)

    torch.manual_seed(columns + tokens)
    dense = nn.Linear(columns, rows, bias=False)
    dense.weight = nn.Parameter(random(rows, columns, scale=columns**-0.5).to(dtype), requires_grad=False)
    layer = METHODS[method](NF4Linear.from_linear(dense) if quantised else dense, r=rank, alpha=rank)
    with torch.no_grad():
        for leaf in layer.active.parameters():
            leaf.add_(random(*leaf.shape, scale=0.02))
    x = random(tokens, columns, scale=1.0).to(dtype).requires_grad_()
    grad_y = random(tokens, rows, scale=1.0).to(dtype)
    return Case(name, rows, columns, tokens, dtype, rank, layer.train(), x, grad_y)
