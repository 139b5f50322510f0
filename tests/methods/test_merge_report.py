"""A layer's merge report against the same figures computed here in fp64, and what its advice says."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
import torch
from torch import nn

from lorafam import MergeReport, NF4Linear
from lorafam.methods import METHODS, AdapterLayer
from lorafam.methods.merge_report import percent
from tests.methods.settings import settings_of

K, N, RANK, ALPHA = 96, 80, 4, 8.0

each_method = pytest.mark.parametrize("method", sorted(METHODS))


def make(method: str, base: str, size: float = 0.1) -> AdapterLayer:
    torch.manual_seed(0)
    linear, settings = nn.Linear(K, N), settings_of(method, r=RANK, alpha=ALPHA)
    with torch.no_grad():
        linear.weight[3] = 0
    if base == "nf4":
        layer = METHODS[method](NF4Linear.from_linear(linear), **settings)
    else:
        layer = METHODS[method](linear.to(getattr(torch, base)), **settings)
    with torch.no_grad():
        for name, parameter in layer.active.named_parameters():
            noise = torch.randn(parameter.shape) * size
            parameter.mul_(1 + noise) if name == "magnitude" else parameter.add_(noise)
    return layer


def exact(layer: AdapterLayer, weight: torch.Tensor) -> torch.Tensor:
    """c ∘ (W + s B Λ A) in fp64, written after the papers."""
    A, B = layer.A.detach().double(), layer.B.detach().double()
    if layer.method == "vera":
        return weight + torch.diag(layer.active.b.detach().double()) @ B @ torch.diag(layer.active.d.double()) @ A
    if layer.method == "adalora":
        return weight + ALPHA / (RANK + 1e-5) * B @ torch.diag(layer.E.detach().double().flatten()) @ A
    sum_ = weight + ALPHA / RANK * B @ A
    if layer.method == "lora":
        return sum_
    return torch.diag(layer.magnitude.detach().double() / sum_.norm(dim=1)) @ sum_


def dense(base: nn.Module) -> torch.Tensor:
    weight = base.weight.dequantize(torch.float32) if isinstance(base, NF4Linear) else base.weight
    return weight.detach().double()


@each_method
@pytest.mark.parametrize("base", ["float32", "bfloat16", "nf4"])
@pytest.mark.parametrize("into", ["same", "bf16", "nf4"])
@pytest.mark.parametrize("given", [True, False])
def test_figures(method: str, base: str, into: str, given: bool) -> None:
    layer = make(method, base)
    before = dense(layer.base_layer)
    want = exact(layer, before)
    if given:
        probe = torch.randn(2, 7, K, generator=torch.Generator().manual_seed(5)) * torch.linspace(0, 2, K)
    else:
        probe = torch.randn(64, K, generator=torch.Generator().manual_seed(0))
    report = layer.merge(into=into, probe=probe if given else None)
    x, stored = probe.reshape(-1, K).double(), dense(layer.base_layer)
    error, update = stored - want, want - before
    figures = {
        "relative_weight_error": error.norm() / want.norm(),
        "relative_update": update.norm() / want.norm(),
        "update_error": error.norm() / update.norm(),
        "update_kept": ((stored - before) * update).sum() / update.square().sum(),
        "output_error": (x @ error.T).norm() / (x @ want.T).norm(),
        "update_output_error": (x @ error.T).norm() / (x @ update.T).norm(),
    }
    assert error.norm() > 0
    for name, value in figures.items():
        assert getattr(report, name) == pytest.approx(value.item(), rel=1e-5), name
    form = {"float32": "fp32", "bfloat16": "bf16"}.get(base, base) if into == "same" else into
    assert report.stored == form


@each_method
@pytest.mark.parametrize("base", ["float32", "nf4"])
@pytest.mark.parametrize("into", ["same", "nf4", "bf16", "fp16", "fp32"])
def test_what_the_base_is_then_and_back(method: str, base: str, into: str) -> None:
    layer = make(method, base).eval()
    own, before = layer.base_layer, dense(layer.base_layer)
    x = torch.randn(5, K)
    y = layer(x)
    layer.merge(into=into)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(into, torch.float32)
    four_bit = into == "nf4" or (into == "same" and base == "nf4")
    assert type(layer.base_layer) is (NF4Linear if four_bit else nn.Linear)
    assert not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
    if not four_bit:
        assert layer.base_layer.weight.dtype == layer.base_layer.bias.dtype == dtype
    with torch.no_grad():
        assert (layer(x.to(dtype)) - y).norm() < (0.2 if four_bit else 0.02) * y.norm()
    layer.unmerge()
    assert layer.base_layer is own
    assert torch.equal(dense(own), before)
    assert torch.equal(layer(x), y)


@pytest.mark.parametrize("into", ["same", "nf4", "bf16", "fp32"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("four_bit", [False, True])
def test_a_bias_of_the_adapter(into: str, bias: bool, four_bit: bool) -> None:
    base: nn.Module = nn.Linear(K, N, bias=bias, dtype=torch.bfloat16)
    layer = METHODS["lora"](NF4Linear.from_linear(base) if four_bit else base, bias=True).eval()
    with torch.no_grad():
        layer.active.bias.fill_(100)
    x = torch.randn(5, K, dtype=torch.bfloat16)
    y = layer(x).float()
    layer.merge(into=into)
    merged = layer(x.float() if into == "fp32" else x).float()
    assert (merged - y).abs().max() < 2
    layer.unmerge()
    assert (layer.base_layer.bias is None) == (not bias)
    assert torch.equal(layer(x).float(), y)


@pytest.mark.parametrize(("block_size", "double_quant"), [(32, False), (128, True)])
def test_a_4_bit_base_keeps_its_settings(block_size: int, double_quant: bool) -> None:
    base = NF4Linear.from_linear(nn.Linear(K, N), block_size, double_quant, quant_type="fp4")
    layer = METHODS["lora"](base)
    assert layer.merge().stored == "fp4"
    layer.unmerge()
    assert layer.merge(into="nf4").stored == "nf4"
    weight = layer.base_layer.weight
    assert (weight.quant_type, weight.block_size, weight.double_quant) == ("nf4", block_size, double_quant)


def with_b(base: str, value: float) -> AdapterLayer:
    layer = make("lora", base, size=0)
    with torch.no_grad():
        layer.B.fill_(value)
    return layer


def test_rounding_that_loses_the_update_is_advised_against() -> None:
    # 2⁻⁸ of a weight is far more than the update: the weights round back to what they were
    report = with_b("bfloat16", 1e-6).merge()
    assert report.update_kept < 0.05
    assert report.update_error == pytest.approx(1, abs=0.05)
    assert report.unmerged_is_better
    assert re.fullmatch(r"rounding to bf16 loses \d+ % of the update, more than 10 %", report.reason)
    assert str(report).endswith("better unmerged")


def test_rounding_greater_than_the_update_is_advised_against() -> None:
    # nothing lies on the grid here, so that none of the update is lost on the average, yet it drowns
    report = with_b("float32", 1e-4).merge(into="nf4", threshold=1)
    assert report.lost < 1
    assert report.update_output_error > 1
    assert report.unmerged_is_better
    assert re.fullmatch(r"rounding to nf4 changes the output more than the update does: \d+ % of it", report.reason)


def test_random_rounding_beside_the_update_is_not() -> None:
    report = with_b("float32", 1e-3).merge(into="bf16")
    assert 0.1 < report.update_output_error < 1
    assert report.lost < 0.1
    assert not report.unmerged_is_better
    assert re.fullmatch(r"rounding to bf16 loses [\d.]+ % of the update and is \d+ % of its output", report.reason)
    assert str(report).endswith("fine merged")


def test_the_threshold_decides() -> None:
    lost = with_b("bfloat16", 1e-4).merge().lost
    assert 0.01 < lost < 0.9
    assert with_b("bfloat16", 1e-4).merge(threshold=lost * 0.99).unmerged_is_better
    assert not with_b("bfloat16", 1e-4).merge(threshold=lost * 1.01).unmerged_is_better


@pytest.mark.parametrize("base", ["float32", "bfloat16", "nf4"])
@pytest.mark.parametrize("how", ["B", "alpha"])
def test_no_update_leaves_the_base_as_it_is(base: str, how: str) -> None:
    layer = make("lora", base)
    with torch.no_grad():
        layer.B.zero_() if how == "B" else setattr(layer.active, "scaling", 0.0)
    weight, before = layer.base_layer.weight, dense(layer.base_layer)
    report = layer.merge()
    assert (report.relative_weight_error, report.update_error, report.update_kept) == (0, 0, 1)
    assert not report.unmerged_is_better
    assert torch.equal(dense(layer.base_layer), before)
    assert layer.base_layer.weight is weight
    layer.unmerge()
    narrowed = layer.merge(into="fp16" if base != "float32" else "bf16")
    if base == "float32":
        assert math.isinf(narrowed.update_output_error)
        assert narrowed.unmerged_is_better
        assert narrowed.reason == "the adapter changes nothing, storing as bf16 does"
        assert MergeReport.from_plain(json.loads(json.dumps(narrowed.plain()))) == narrowed


def test_pruned_to_rank_zero() -> None:
    layer = make("adalora", "nf4")
    layer.active.A = nn.Parameter(layer.A[:0])
    layer.active.B = nn.Parameter(layer.B[:, :0])
    layer.active.E = nn.Parameter(layer.E[:0])
    assert layer.merge().update_output_error == 0


def test_a_result_out_of_range_is_refused() -> None:
    layer = make("lora", "float32")
    with torch.no_grad():
        layer.B[0, 0] = 1e7
    before = layer.base_layer.weight.clone()
    with pytest.raises(ValueError, match="the merged weight has NaN or inf in fp16"):
        layer.merge(into="fp16")
    assert torch.equal(layer.base_layer.weight, before)
    assert not layer.merged
    assert layer.merge(into="fp16", safe=False).unmerged_is_better


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make("dora", "bfloat16")
    report = whole.merge()
    monkeypatch.setattr("lorafam.methods.merge_report._BLOCK", 7 * K + 1)
    blocks = make("dora", "bfloat16")
    assert blocks.merge()[2:] == pytest.approx(report[2:])
    assert torch.equal(blocks.base_layer.weight, whole.base_layer.weight)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"into": "int8"}, ValueError, "into: expected one of 'same', 'nf4', 'bf16', 'fp16', 'fp32', got 'int8'"),
        ({"probe": torch.ones(3, K + 1)}, ValueError, rf"probe: expected shape \[.., {K}\], got \[3, {K + 1}\]"),
        ({"probe": torch.ones(0, K)}, ValueError, r"probe: expected shape"),
        ({"probe": torch.full((K,), math.nan)}, ValueError, "probe: expected finite values"),
        ({"probe": torch.ones(K).int()}, TypeError, "probe: expected a tensor of floats, got torch.int32"),
        ({"threshold": -1}, ValueError, "threshold: expected a share of the update, 0.1 say, got -1"),
    ],
)
def test_bad_options_change_nothing(options: dict[str, Any], error: type[Exception], message: str) -> None:
    layer = make("lora", "float32")
    with pytest.raises(error, match=message):
        layer.merge(**options)
    assert not layer.merged


@pytest.mark.parametrize(("share", "shown"), [(0.0123, "1.2 %"), (6.4, "640 %"), (0.0995, "10 %"), (math.inf, "∞")])
def test_percent(share: float, shown: str) -> None:
    assert percent(share) == shown
