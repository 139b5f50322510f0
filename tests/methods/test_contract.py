"""What every method promises, over dense, 4-bit, bitsandbytes' and unknown bases: a new method is tested by being
registered.
"""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorafam import MergeReport, NF4Linear, explain
from lorafam.methods import METHODS, AdapterLayer
from tests.conftest import device
from tests.methods.settings import settings_of

pytestmark = pytest.mark.usefixtures("backend")

# bitsandbytes' own CPU decoder is wrong where K isn't a multiple of the block
K, N, RANK = 128, 70, 4


class Scaled(nn.Module):
    """A base of unknown class: only its forward says what it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = K, N
        self.inner = nn.Linear(K, N)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def bitsandbytes_base() -> nn.Module:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    base = bitsandbytes.nn.Linear4bit(
        K, N, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=True, device="cpu"
    )
    base.weight = bitsandbytes.nn.Params4bit(
        torch.randn(N, K) * 0.1, requires_grad=False, quant_type="nf4", compress_statistics=True
    )
    return base.to(device())


def dense_base(bias: bool = True) -> nn.Linear:
    return nn.Linear(K, N, bias=bias).to(device())


BASES = {
    "dense": dense_base,
    "dense-no-bias": lambda: dense_base(bias=False),
    "nf4": lambda: NF4Linear.from_linear(dense_base()),
    "bitsandbytes": bitsandbytes_base,
    "conv1d": lambda: Conv1D(N, K).to(device()),
    "unknown": lambda: Scaled().to(device()),
}
MERGEABLE = [name for name in BASES if name != "unknown"]


def make(method: str, base: str, **settings: Any) -> AdapterLayer:
    torch.manual_seed(0)
    return METHODS[method](BASES[base](), **settings_of(method, r=RANK, alpha=8), **settings)


def trained(layer: AdapterLayer) -> AdapterLayer:
    """Adapter values as training leaves them: nothing is zero, the magnitude is near the norm."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in layer.active.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(device())
            if name == "magnitude":
                parameter.mul_(1 + 0.1 * noise)
            else:
                parameter.add_(0.1 * noise)
    return layer


def x() -> torch.Tensor:
    return torch.randn(3, 11, K, generator=torch.Generator().manual_seed(2)).to(device())


each_method = pytest.mark.parametrize("method", sorted(METHODS))
each_base = pytest.mark.parametrize("base", BASES)
each_mergeable = pytest.mark.parametrize("base", MERGEABLE)


@each_method
@each_base
def test_equals_the_base_at_initialisation(method: str, base: str) -> None:
    layer = make(method, base)
    torch.testing.assert_close(layer(x()), layer.base_layer(x()), rtol=1e-5, atol=1e-5)


@each_method
@each_base
def test_base_is_frozen_and_adapter_trains(method: str, base: str) -> None:
    layer = trained(make(method, base))
    given = x().requires_grad_()
    layer(given).square().sum().backward()
    for name, parameter in layer.base_layer.named_parameters():
        assert parameter.grad is None, name
        assert not parameter.requires_grad, name
    for name, parameter in layer.active.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
        assert parameter.dtype == torch.float32, name
    assert given.grad is not None


@each_method
@each_base
def test_known_and_unknown_bases_agree(method: str, base: str) -> None:
    """A hook on the base sends it through its own forward; the result must not change."""
    layer = trained(make(method, base))
    fast = layer(x())
    handle = layer.base_layer.register_forward_hook(lambda *_: None)
    assert explain(layer, 33).path == "base module + low rank"
    torch.testing.assert_close(layer(x()), fast, rtol=1e-4, atol=1e-4)
    handle.remove()


@each_method
@each_base
def test_disabled_is_the_base(method: str, base: str) -> None:
    layer = trained(make(method, base))
    assert not torch.allclose(layer(x()), layer.base_layer(x()), atol=1e-3)
    layer.enabled = False
    assert torch.equal(layer(x()), layer.base_layer(x()))
    assert explain(layer, 1).path == "base module"


@each_method
@each_mergeable
def test_merge_round_trip(method: str, base: str) -> None:
    layer = trained(make(method, base)).eval()
    before = layer(x())
    delta = layer.delta_weight()
    stored = copy.deepcopy(layer.base_layer.state_dict())
    report = layer.merge()
    assert isinstance(report, MergeReport)
    assert layer.merged
    merged = layer(x())
    if base.startswith("dense") or base == "conv1d":
        assert report.relative_weight_error < 1e-6
        torch.testing.assert_close(merged, before, rtol=1e-4, atol=1e-4)
        assert type(layer.base_layer) is (Conv1D if base == "conv1d" else nn.Linear)
        added = delta.T if base == "conv1d" else delta
        torch.testing.assert_close(layer.base_layer.weight, stored["weight"] + added, rtol=1e-4, atol=1e-5)
    else:
        # 4-bit rounding has a relative error of about a tenth
        assert 0.01 < report.relative_weight_error < 0.2
        assert (merged - before).norm() / before.norm() < 0.3
    with pytest.raises(RuntimeError, match="merged already"):
        layer.merge()
    layer.unmerge()
    assert not layer.merged
    for name, tensor in layer.base_layer.state_dict().items():
        assert torch.equal(tensor, stored[name]), name
    assert torch.equal(layer(x()), before)
    with pytest.raises(RuntimeError, match="isn't merged"):
        layer.unmerge()


@each_method
def test_merge_of_an_unknown_base_is_refused(method: str) -> None:
    with pytest.raises(TypeError, match="Scaled can't be replaced"):
        make(method, "unknown").merge()


@each_method
def test_merge_refuses_nan(method: str) -> None:
    layer = trained(make(method, "dense"))
    with torch.no_grad():
        next(layer.active.parameters()).view(-1)[0] = float("nan")
    before = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match="NaN or inf"):
        layer.merge()
    assert torch.equal(layer.base_layer.weight, before)


@each_method
@each_base
def test_training_after_evaluation_gives_the_same_gradients(method: str, base: str) -> None:
    def gradients(evaluate_first: bool) -> dict[str, torch.Tensor]:
        layer = trained(make(method, base)).train()
        if evaluate_first:
            layer.eval()
            with torch.no_grad():
                layer(x())
                layer(x())
            layer.train()
        given = x().requires_grad_()
        layer(given).square().sum().backward()
        return {"x": given.grad, **{n: p.grad for n, p in layer.active.named_parameters()}}  # type: ignore[dict-item]

    plain, after = gradients(False), gradients(True)
    for name, gradient in plain.items():
        assert torch.equal(gradient, after[name]), name


@each_method
def test_evaluation_sees_what_training_changed(method: str) -> None:
    layer = trained(make(method, "nf4")).eval()
    with torch.no_grad():
        first = layer(x())
    layer.train()
    with torch.no_grad():
        for parameter in layer.active.parameters():
            parameter.add_(0.5)
    layer.eval()
    with torch.no_grad():
        second = layer(x())
    fresh = copy.deepcopy(layer).train().eval()
    with torch.no_grad():
        assert torch.equal(second, fresh(x()))
    assert not torch.allclose(first, second)


@each_method
@each_mergeable
def test_copies_and_state(method: str, base: str) -> None:
    layer = trained(make(method, base)).eval()
    expected = layer(x())
    assert torch.equal(copy.deepcopy(layer)(x()), expected)
    if base != "bitsandbytes":
        assert torch.equal(pickle.loads(pickle.dumps(layer))(x()), expected)
        saved = io.BytesIO()
        torch.save(layer.state_dict(), saved)
        saved.seek(0)
        torch.manual_seed(99)
        other = METHODS[method](BASES[base](), **settings_of(method, r=RANK, alpha=8)).eval()
        other.load_state_dict(torch.load(saved))
        assert torch.equal(other(x()), expected)


@each_method
@pytest.mark.parametrize("base", ["dense", "nf4"])
def test_moving_and_narrowing(method: str, base: str) -> None:
    """`.to(bfloat16)` narrows what is float, but never a 4-bit weight's scales."""
    layer = trained(make(method, base)).eval()
    codes = layer.base_layer.weight.dequantize() if base == "nf4" else None
    narrow = layer.to(torch.bfloat16)
    y = narrow(x().bfloat16())
    assert y.dtype == torch.bfloat16
    if codes is not None:
        assert torch.equal(layer.base_layer.weight.dequantize(), codes)


@each_method
def test_named_adapters(method: str) -> None:
    layer = trained(make(method, "nf4"))
    first = layer(x())
    layer.add_adapter("other", **settings_of(method, r=2, alpha=4))
    layer.set_adapter("other")
    assert layer.A.shape[0] == 2
    torch.testing.assert_close(layer(x()), layer.base_layer(x()), rtol=1e-5, atol=1e-5)
    assert not layer.adapters["default"].A.requires_grad
    layer.set_adapter("default")
    assert torch.equal(layer(x()), first)
    with pytest.raises(KeyError, match="'default', 'other'"):
        layer.set_adapter("missing")


@each_method
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r: expected a positive integer, got 0"),
        ({"r": -3}, "r: expected a positive integer, got -3"),
        ({"alpha": -1}, "alpha: expected a number that isn't negative, got -1"),
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout: expected a probability in \[0, 1\), got -0.1"),
        ({"init": "magic"}, "init: expected one of 'default', 'gaussian', 'pissa', .*, got 'magic'"),
    ],
)
def test_bad_settings(method: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHODS[method](nn.Linear(K, N), **settings)


@each_method
def test_bad_bases(method: str) -> None:
    with pytest.raises(ValueError, match="ReLU has none"):
        METHODS[method](nn.ReLU())
    with pytest.raises(TypeError, match="base: expected a layer without an adapter"):
        METHODS[method](make(method, "dense"))


@each_method
def test_dropout_only_while_training(method: str) -> None:
    layer = trained(make(method, "nf4", dropout=0.5))
    assert not torch.equal(layer(x()), layer(x()))
    layer.eval()
    assert torch.equal(layer(x()), layer(x()))


@each_method
def test_compiles_without_a_break(method: str) -> None:
    layer = trained(make(method, "nf4"))
    layer(x()).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in layer.active.named_parameters()}
    layer.zero_grad()
    torch.compile(layer, backend="aot_eager", fullgraph=True)(x()).square().sum().backward()
    for name, parameter in layer.active.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4)
