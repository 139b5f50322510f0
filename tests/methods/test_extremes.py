"""Settings at their ends, for every method over dense and 4-bit bases: what the formulae give there, and finite
gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lorafam import NF4Linear
from lorafam.methods import METHODS, AdapterLayer
from tests.conftest import BACKENDS, device
from tests.methods.settings import settings_of
from tests.methods.test_contract import trained

K, N = 128, 70

pytestmark = [
    pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "simulate"], indirect=True),
    pytest.mark.usefixtures("backend"),
]


def base_of(kind: str) -> nn.Module:
    torch.manual_seed(0)
    base = nn.Linear(K, N)
    with torch.no_grad():
        base.weight[::7] = 0.0
    return (NF4Linear.from_linear(base) if kind == "nf4" else base).to(device())


def x() -> torch.Tensor:
    return torch.randn(3, 5, K, generator=torch.Generator().manual_seed(1)).to(device()).requires_grad_()


def by_formula(layer: AdapterLayer, given: torch.Tensor) -> torch.Tensor:
    """x (c ∘ (W + B̂ A))ᵀ + bias in fp64."""
    base: Any = layer.base_layer
    weight = base.weight.dequantize(torch.float32) if isinstance(base, NF4Linear) else base.weight
    merged = layer.merged_weight(weight.double())
    return given.double() @ merged.T + base.bias.double()


def gradients_are_finite(layer: AdapterLayer) -> None:
    given = x()
    layer(given).square().sum().backward()
    assert given.grad is not None
    assert given.grad.isfinite().all()
    for name, parameter in layer.active.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


each_method = pytest.mark.parametrize("method", sorted(METHODS))
each_base = pytest.mark.parametrize("base", ["dense", "nf4"])


SETTINGS: list[dict[str, Any]] = [{"r": 1}, {"r": 200}, {"alpha": 0}, {"r": 3, "alpha": 1e-30}]
scaled = pytest.mark.parametrize("method", [name for name in sorted(METHODS) if "alpha" not in METHODS[name].lacks])


@each_base
@pytest.mark.parametrize(
    ("method", "settings"),
    [(name, one) for name in sorted(METHODS) for one in SETTINGS if settings_of(name, **one) == one],
    ids=str,
)
def test_ranks_and_scalings(method: str, base: str, settings: dict[str, Any]) -> None:
    """Every seventh row of W is zero, and of W + B̂ A where B̂ is."""
    layer = trained(METHODS[method](base_of(base), **settings))
    with torch.no_grad():
        layer.B[::14] = 0.0
    given = x()
    torch.testing.assert_close(layer(given).double(), by_formula(layer, given), rtol=1e-4, atol=1e-4)
    gradients_are_finite(layer)


@scaled
@each_base
def test_alpha_zero_is_the_base(method: str, base: str) -> None:
    layer = METHODS[method](base_of(base), alpha=0)
    with torch.no_grad():
        layer.A.normal_()
        layer.B.normal_()
    torch.testing.assert_close(layer(x()), layer.base_layer(x()), rtol=1e-5, atol=1e-5)


@each_method
@each_base
def test_almost_everything_dropped(method: str, base: str) -> None:
    layer = trained(METHODS[method](base_of(base), r=4, dropout=0.999))
    torch.manual_seed(0)
    assert layer(x()).isfinite().all()
    gradients_are_finite(layer)
    given = x()
    torch.testing.assert_close(layer.eval()(given).double(), by_formula(layer, given), rtol=1e-4, atol=1e-4)
