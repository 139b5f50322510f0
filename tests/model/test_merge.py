"""A whole model merged: what it then is, what the report says, and that a refusal changes nothing."""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import bitsandbytes
import pytest
import torch
from torch import nn

import lorafam
from lorafam import AdapterConfig, NF4Linear
from lorafam.methods import AdapterLayer
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens


def adapted(**settings: Any) -> nn.Module:
    model = lorafam.adapt(tiny_model(), AdapterConfig(**{"r": 4, **settings})).eval()
    disturb(model)
    return model


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    return model(tokens()).logits.float()


@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("into", ["same", "nf4", "bf16", "fp16", "fp32"])
def test_into(method: str, quantize: str | None, into: str) -> None:
    model = adapted(method=method, quantize=quantize)
    before = logits(model)
    report = lorafam.merge_and_unload(model, into=into)
    assert len(report) == 14
    assert not hasattr(model, "lorafam_config")
    four_bit = into == "nf4" or (into == "same" and quantize is not None)
    assert {type(model.get_submodule(path)) for path in report} == {NF4Linear if four_bit else nn.Linear}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(into, torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    limit = 0.5 if four_bit else 0.03 if dtype != torch.float32 else 1e-5
    assert (logits(model) - before).norm() < limit * before.norm()


def test_bitsandbytes_bases_become_dense() -> None:
    model = tiny_model()
    for path in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"):
        weight = model.get_submodule(path).weight.data
        layer = bitsandbytes.nn.Linear4bit(32, 48, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        layer.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
        model.get_submodule(path.rpartition(".")[0]).up_proj = layer.to("cpu")
    lorafam.adapt(model, AdapterConfig(r=4, target_modules=["up_proj"])).eval()
    disturb(model)
    before = logits(model)
    lorafam.merge_and_unload(model, into="fp32")
    assert type(model.model.layers[0].mlp.up_proj) is nn.Linear
    torch.testing.assert_close(logits(model), before, rtol=1e-3, atol=1e-4)


def test_kept_by_name(tmp_path: Any) -> None:
    model = adapted(quantize="nf4")
    plain = copy.deepcopy(model)
    report = lorafam.merge_and_unload(model, keep_unmerged=["q_proj", "layers.1.mlp.up_proj"])
    left = {"model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"}
    assert set(report.kept) == set(adapter_layers(model)) == left
    assert len(report) == 14
    for path in left:
        kept, same = model.get_submodule(path), plain.get_submodule(path)
        assert torch.equal(kept(torch.ones(3, 32)), same(torch.ones(3, 32)))
    with pytest.raises(ValueError, match=r"k_proj\.weight' was merged into 4 bits, which no adapter's file has"):
        lorafam.save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())
    # what is left of a dense base is saved and loaded as ever
    model = adapted()
    lorafam.merge_and_unload(model, keep_unmerged=["q_proj", "layers.1.mlp.up_proj"])
    lorafam.save_adapter(model, tmp_path)
    again = copy.deepcopy(model)
    disturb(again, seed=7)
    assert torch.equal(logits(lorafam.load_adapter(again, tmp_path)), logits(model))


def test_kept_by_advice() -> None:
    """Small updates of a bf16 model: rounding takes some back."""
    model = lorafam.adapt(tiny_model().to(torch.bfloat16), AdapterConfig(r=4)).eval()
    disturb(model)
    with torch.no_grad():
        for layer in adapter_layers(model).values():
            layer.B.mul_(2e-4)
    lost = {path: layer.merge().lost for path, layer in adapter_layers(copy.deepcopy(model)).items()}
    middle = statistics.median(lost.values())
    assert 0.1 < middle < 0.9
    report = lorafam.merge_and_unload(model, keep_unmerged="advised", threshold=middle)
    assert set(report.kept) == {path for path, share in lost.items() if share > middle} == set(report.advised)
    assert len(report.kept) == 7
    assert set(adapter_layers(model)) == set(report.kept)
    errors = [report[path].update_output_error for path in report.advised]
    assert errors == sorted(errors, reverse=True)
    assert "not merged" in str(report)
    assert str(report).splitlines()[-1] == "7 of 14 layers merged as bf16"


def test_report_on_a_models_own_inputs() -> None:
    model = adapted(quantize="nf4")
    seen: dict[str, torch.Tensor] = {}
    for path, layer in adapter_layers(model).items():
        layer.register_forward_pre_hook(lambda _, given, path=path: seen.__setitem__(path, given[0]))
    probes = lorafam.probe_inputs(model, tokens(), rows=8)
    assert set(probes) == set(adapter_layers(model))
    for path, x in seen.items():
        every = x.reshape(-1, x.shape[-1])
        assert probes[path].shape[0] == 8
        assert torch.equal(probes[path][0], every[0])
        assert torch.equal(probes[path][-1], every[-1])
    alone = copy.deepcopy(model)
    report = lorafam.merge_and_unload(model, probe=probes)
    path = "model.layers.1.mlp.down_proj"
    assert report[path] == alone.get_submodule(path).merge(probe=probes[path])
    assert report[path] != lorafam.merge_and_unload(adapted(quantize="nf4"))[path]


def test_the_table() -> None:
    model = adapted(quantize="nf4", target_modules=["q_proj", "up_proj"])
    with torch.no_grad():
        # the adapter of one layer counts for nothing beside the rounding
        model.model.layers[1].mlp.up_proj.B.mul_(1e-3)
    report = lorafam.merge_and_unload(model, threshold=0.5)
    lines = str(report).splitlines()
    assert len(lines) == 5
    head = ["layers", "update kept", "error / weight", "error / output", "error / update's output"]
    assert [part.strip() for part in lines[0].split("  ") if part.strip()] == head
    assert lines[1].startswith("model.layers.*.mlp.up_proj ")
    assert lines[1].endswith("not advised")
    assert "x2" in next(line for line in lines if "q_proj" in line)
    advised = (
        "1 better unmerged (over 50 % of the update lost, or rounding greater than it): model.layers.1.mlp.up_proj"
    )
    assert lines[-1] == f"4 of 4 layers merged as nf4; {advised}"
    assert report.advised == ["model.layers.1.mlp.up_proj"]
    assert repr(report) == "ModelMergeReport(4 layers, 1 better unmerged, 0 kept)"


def test_a_refusal_changes_nothing() -> None:
    model = adapted()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.A[0, 0] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.down_proj: merge: the merged weight has NaN"):
        lorafam.merge_and_unload(model)
    after = model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=0, equal_nan=True)
    assert not any(layer.merged for layer in adapter_layers(model).values())


def test_a_tied_weight_is_parted_from_one_other_not_from_two() -> None:
    def tied() -> Any:
        model = tiny_model()
        model.lm_head.weight = model.model.embed_tokens.weight
        lorafam.adapt(model, AdapterConfig(r=4, target_modules=["lm_head", "q_proj"]))
        disturb(model)
        return model

    model = tied()
    table, before = model.model.embed_tokens.weight, model.model.embed_tokens.weight.clone()
    report = lorafam.merge_and_unload(model, keep_unmerged="lm_head")
    assert report.kept == ("lm_head",)
    assert isinstance(model.lm_head, AdapterLayer)
    assert model.lm_head.base_layer.weight is table
    model = tied()
    lorafam.merge_and_unload(model)
    assert torch.equal(model.model.embed_tokens.weight, before)
    model = tied()
    model.third = torch.nn.Embedding(50, 32)
    model.third.weight = model.model.embed_tokens.weight
    with pytest.raises(ValueError, match=r"lm_head: its weight is tied to model\.embed_tokens\.weight and third"):
        lorafam.merge_and_unload(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"into": "int8"}, "into: expected one of 'same'"),
        ({"keep_unmerged": ["q_prj"]}, "keep_unmerged: no adapter layer is called 'q_prj'; there are down_proj"),
        ({"probe": {"nothing": torch.ones(1, 32)}}, "probe: expected paths of adapter layers, got 'nothing'"),
        ({"probe": {"model.layers.0.mlp.up_proj": torch.ones(1, 3)}}, r"up_proj: probe: expected shape \[.., 32\]"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    model = adapted()
    with pytest.raises(ValueError, match=message):
        lorafam.merge_and_unload(model, **options)
    assert len(adapter_layers(model)) == 14
    assert not any(layer.merged for layer in adapter_layers(model).values())


def test_without_adapters() -> None:
    with pytest.raises(ValueError, match="it has none"):
        lorafam.merge_and_unload(tiny_model())
    with pytest.raises(ValueError, match="it has none"):
        lorafam.probe_inputs(tiny_model(), tokens())
    with pytest.raises(ValueError, match="rows: expected a positive integer, got 0"):
        lorafam.probe_inputs(adapted(), tokens(), rows=0)


@pytest.mark.parametrize("into", ["same", "fp32"])
def test_a_merged_layer_is_as_fast_as_a_plain_one(into: str) -> None:
    plain = nn.Linear(1024, 1024)
    model = nn.Sequential(copy.deepcopy(plain))
    lorafam.adapt(model, AdapterConfig(r=8, quantize="nf4" if into == "fp32" else None))
    disturb(model)
    lorafam.merge_and_unload(model, into=into)
    merged = model[0]
    assert type(merged) is nn.Linear
    assert merged.__dict__.keys() == plain.__dict__.keys()
    assert (merged.weight.is_contiguous(), merged.weight.dtype) == (True, plain.weight.dtype)
    x = torch.randn(16, 1024)

    def seconds(layer: nn.Module) -> float:
        started = time.perf_counter()
        layer(x)
        return time.perf_counter() - started

    with torch.no_grad():
        ratios = [seconds(merged) / seconds(plain) for _ in range(400)][50:]
    # the median of pairs timed in turn; the adapter's own forward takes 1.3 and more
    assert statistics.median(ratios) < 1.15
