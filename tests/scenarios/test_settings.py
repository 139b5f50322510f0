"""Settings have types and names: a wrong one is refused at once, with its name, what was expected and what came."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.model import expressions
from tests.model.tiny import tiny_model

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rslora": "false"}, "rslora: expected True or False, got 'false'"),
    ({"double_quant": "no"}, "double_quant: expected True or False, got 'no'"),
    ({"bias": "none"}, "bias: expected True or False, got 'none'"),
    ({"bias": "lora_only"}, "bias: expected True or False, got 'lora_only'"),
    ({"dora_norm_gradient": 1}, "dora_norm_gradient: expected True or False, got 1"),
    ({"r": 8.0}, "r: expected a positive integer, got 8.0"),
    ({"r": True}, "r: expected a positive integer, got True"),
    ({"r": "8"}, "r: expected a positive integer, got '8'"),
    ({"alpha": "16"}, "alpha: expected a number"),
    ({"alpha": float("nan")}, "alpha: expected a number"),
    ({"alpha": 1j}, "alpha: expected a number"),
    ({"dropout": "0.1"}, "dropout: expected a probability"),
    ({"dropout": float("nan")}, "dropout: expected a probability"),
    ({"block_size": 64.0}, "block_size: expected one of"),
    ({"quantize": "int8"}, "quantize: expected one of"),
    ({"quantize": True}, "quantize: expected one of"),
    ({"method": "qlora"}, "method: 'qlora' is method='lora' with quantize='nf4'"),
    ({"method": "qdora"}, "method: 'qdora' is method='dora' with quantize='nf4'"),
    ({"method": "LoRA"}, "method: expected one of"),
    ({"method": ["lora"]}, "method: expected one of"),
    ({"init": "pissa_niter_0"}, "init: expected one of"),
    ({"init": "pissa_niter_"}, "init: expected one of"),
    ({"init": True}, "init: expected one of"),
    ({"target_modules": [1]}, "target_modules: expected names, got 1 among them"),
    ({"target_modules": ["q", ""]}, "target_modules: expected names, got '' among them"),
    ({"target_modules": 5}, "target_modules: expected names, got 5"),
    ({"target_modules": "("}, "target_modules: '\\(' is no regular expression"),
    ({"exclude_modules": "["}, "exclude_modules: '\\[' is no regular expression"),
    ({"rank_pattern": {"q": 2.0}}, r"rank_pattern\['q'\]: expected a positive integer, got 2.0"),
    ({"rank_pattern": {"(": 2}}, "rank_pattern, the key: '\\(' is no regular expression"),
    ({"rank_pattern": ["q"]}, "rank_pattern: expected names to values"),
    ({"alpha_pattern": {"q": "4"}}, r"alpha_pattern\['q'\]: expected a number"),
    ({"layers_to_transform": True}, "layers_to_transform: expected layers' indices, got True"),
    ({"layers_to_transform": [-1]}, "layers_to_transform: expected layers' indices"),
    ({"layers_to_transform": ["0"]}, "layers_to_transform: expected layers' indices"),
    ({"layers_to_transform": [0], "target_modules": ".*q"}, "layers_to_transform: expected target_modules to be names"),
    ({"layers_pattern": "h"}, "layers_pattern: expected layers_to_transform with it"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[str(settings) for settings, _ in WRONG])
def test_a_wrong_type_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**settings)


NAMES = {
    "lora_alpha": "it is called alpha",
    "rank": "it is called r",
    "lora_dropout": "it is called dropout",
    "use_rslora": "it is called rslora",
    "init_lora_weights": "it is called init",
    "load_in_4bit": "it is called quantize='nf4'",
    "target_module": "did you mean target_modules",
    "alpha_patterns": "did you mean alpha_pattern",
}


@pytest.mark.parametrize("name", NAMES)
def test_another_librarys_name_is_answered_with_ours(name: str) -> None:
    with pytest.raises(TypeError, match=f"no setting '{name}'; {NAMES[name]}"):
        AdapterConfig(**{name: 4})


def test_a_configuration_is_copied_and_pickled() -> None:
    config = AdapterConfig(r=4, target_modules=["q"], rank_pattern={"q": 2})
    assert replace(config, r=4) == config == pickle.loads(pickle.dumps(config))


@pytest.mark.parametrize("config", [None, {"r": 8}, "lora"])
def test_adapt_takes_a_configuration_alone(config: Any) -> None:
    with pytest.raises(TypeError, match=r"config: expected a lorafam\.AdapterConfig"):
        lorafam.adapt(nn.Sequential(nn.Linear(8, 8)), config)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"beta1": 2.0}, "beta1"), ({"beta2": float("nan")}, "beta2"), ({"orthogonality": float("nan")}, "orthogonality")],
)
def test_an_allocators_settings(settings: dict[str, Any], message: str) -> None:
    model = lorafam.adapt(nn.Sequential(nn.Linear(8, 8)), AdapterConfig(method="adalora", r=4, target_modules=["0"]))
    schedule = {"init_rank": 4, "target_rank": 2, "total_steps": 10, "warmup_steps": 1, "final_steps": 1, "interval": 1}
    with pytest.raises(ValueError, match=message):
        lorafam.RankAllocator(model, **schedule, **settings)


SCHEDULE = {"init_rank": 4, "target_rank": 2, "total_steps": 10, "warmup_steps": 1, "final_steps": 1, "interval": 1}
# argument → how a function is called with it, values that it can't be
CALLS: dict[str, tuple[Callable[[Any, Path, Any], object], list[Any]]] = {
    "adapt, model": (lambda m, d, v: lorafam.adapt(v, AdapterConfig()), [None, "m", [nn.Linear(2, 2)]]),
    "save_adapter, model": (lambda m, d, v: lorafam.save_adapter(v, d), [None, 3]),
    "save_adapter, directory": (lambda m, d, v: lorafam.save_adapter(m, v), [None, 3, ["a"], True]),
    "save_adapter, adapter": (lambda m, d, v: lorafam.save_adapter(m, d, v), [3, ["b"], "", True, "zz"]),
    "load_adapter, model": (lambda m, d, v: lorafam.load_adapter(v, d), [None, "m"]),
    "load_adapter, directory": (lambda m, d, v: lorafam.load_adapter(m, v), [None, 3, ["a"]]),
    "load_adapter, adapter": (lambda m, d, v: lorafam.load_adapter(m, d, v), [3, ["b"], "", True, "a.b", "keys"]),
    "add_adapter, name": (lambda m, d, v: lorafam.add_adapter(m, v), [None, 3, "", "a.b", "b", "keys", ["x"]]),
    "add_adapter, config": (lambda m, d, v: lorafam.add_adapter(m, "x", v), [{"r": 2}, "lora"]),
    "set_adapter, name": (lambda m, d, v: lorafam.set_adapter(m, v), [None, 3, ["b"], "zz"]),
    "delete_adapter, name": (lambda m, d, v: lorafam.delete_adapter(m, v), [None, ["b"], "zz", "default"]),
    "adapters_by_row, names": (
        lambda m, d, v: lorafam.adapters_by_row(m, v).__enter__(),
        [None, 3, "b", [], [3], ["zz"], [["b"]], {"b": 1}],
    ),
    "combine_adapters, adapters": (
        lambda m, d, v: lorafam.combine_adapters(m, v, [1, 1], "x"),
        [None, 3, "default", [3, "b"], ["default", "zz"]],
    ),
    "combine_adapters, weights": (
        lambda m, d, v: lorafam.combine_adapters(m, ["default", "b"], v, "x"),
        [None, 3, "11", ["1", 1], [True, 1], [float("nan"), 1], {"default": 1, "b": 1}],
    ),
    "combine_adapters, rank": (
        lambda m, d, v: lorafam.combine_adapters(m, ["default", "b"], [1, 1], "x", "svd", v),
        [0, -1, 2.0, "2", True],
    ),
    "merge_and_unload, safe": (lambda m, d, v: lorafam.merge_and_unload(m, v), ["no", 0, None]),
    "merge_and_unload, into": (lambda m, d, v: lorafam.merge_and_unload(m, into=v), [None, "BF16", torch.bfloat16]),
    "merge_and_unload, keep_unmerged": (
        lambda m, d, v: lorafam.merge_and_unload(m, keep_unmerged=v),
        [None, 3, ["zz"], [3], "zz"],
    ),
    "merge_and_unload, probe": (
        lambda m, d, v: lorafam.merge_and_unload(m, probe=v),
        [3, "x", {"zz": torch.ones(1)}, [torch.ones(1)]],
    ),
    "merge_and_unload, threshold": (
        lambda m, d, v: lorafam.merge_and_unload(m, threshold=v),
        [None, "0.1", -1, float("nan"), True],
    ),
    "accelerate, module": (lambda m, d, v: lorafam.accelerate(v), [None, 3, "m"]),
    "LoraLinear, rslora": (lambda m, d, v: lorafam.LoraLinear(nn.Linear(8, 8), rslora=v), ["no", 1, None]),
    "LoraLinear, bias": (lambda m, d, v: lorafam.LoraLinear(nn.Linear(8, 8), bias=v), ["none", 1, None]),
    "LoraLinear, adapter": (lambda m, d, v: lorafam.LoraLinear(nn.Linear(8, 8), adapter=v), [None, 3, "", "a.b"]),
    "DoraLinear, norm_gradient": (
        lambda m, d, v: lorafam.DoraLinear(nn.Linear(8, 8), norm_gradient=v),
        ["no", 1, None],
    ),
    "quantize_nf4, weight": (lambda m, d, v: lorafam.quantize_nf4(v), [None, 3, "x"]),
    "quantize_nf4, double_quant": (
        lambda m, d, v: lorafam.quantize_nf4(torch.ones(64, 64), double_quant=v),
        ["no", 1, None],
    ),
    "quantize_nf4, block_size": (
        lambda m, d, v: lorafam.quantize_nf4(torch.ones(64, 64), v),
        [0, 63, "64", 64.0, True, None],
    ),
    "lora_plus_groups, lr": (lambda m, d, v: lorafam.lora_plus_groups(m, v, 2), [-1, "1", True, None, float("nan")]),
    "lora_plus_groups, ratio": (lambda m, d, v: lorafam.lora_plus_groups(m, 1e-3, v), [0, "1", True, None]),
    "AdaLoraCallback, allocator": (lambda m, d, v: lorafam.AdaLoraCallback(v), [3, "x", True]),
    "AdaLoraCallback, compact": (lambda m, d, v: lorafam.AdaLoraCallback(compact=v), ["x", 3, None]),
    "merge_files, model": (lambda m, d, v: lorafam.merge_files(v, d, d / "out"), [3, ["x"], None]),
    "merge_files, output": (lambda m, d, v: lorafam.merge_files(d, d, v), [3, None]),
    "merge_files, max_shard_size": (
        lambda m, d, v: lorafam.merge_files(d, d, d / "out", max_shard_size=v),
        [1.5, True, ["x"], 0],
    ),
    "merge_files, resume": (lambda m, d, v: lorafam.merge_files(d, d, d / "out", resume=v), ["no", 1, None]),
    **{
        f"RankAllocator, {name}": (
            lambda m, d, v, name=name: lorafam.RankAllocator(m, **{**SCHEDULE, name: v}),
            [-1, "2", 2.5, True, None],
        )
        for name in SCHEDULE
    },
    "RankAllocator, orthogonality": (
        lambda m, d, v: lorafam.RankAllocator(m, **SCHEDULE, orthogonality=v),
        [-1, "0.5", True, None, float("inf")],
    ),
    "RankAllocator, model": (lambda m, d, v: lorafam.RankAllocator(v, **SCHEDULE), [None, 3]),
}


@pytest.mark.parametrize("what", CALLS)
def test_a_wrong_argument_is_named_before_anything_changes(what: str, tmp_path: Path) -> None:
    call, values = CALLS[what]
    argument = what.partition(", ")[2]
    model = lorafam.adapt(tiny_model(), AdapterConfig(r=4, target_modules=["q_proj"]))
    lorafam.add_adapter(model, "b")
    lorafam.save_adapter(model, tmp_path)
    files = sorted(tmp_path.iterdir())

    def state() -> list[Any]:
        modules = [(name, id(module)) for name, module in model.named_modules()]
        return [*modules, *((name, p._version, p.requires_grad) for name, p in model.named_parameters())]

    before = state()
    for value in values:
        with pytest.raises((TypeError, ValueError, KeyError), match=rf"^\W?{argument}: "):
            call(model, tmp_path, value)
        assert state() == before, value
        assert sorted(tmp_path.iterdir()) == files, value


@pytest.mark.parametrize("where", ["target_modules", "exclude_modules", "alpha_pattern"])
def test_an_expression_that_never_ends_is_given_up(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "PATIENCE", 2.0)
    endless = "(.*.*.*.*.*.*.*.*.*.*)x"
    path = "layer_of_a_model_with_a_name_that_is_long_enough_to_keep_an_expression_busy"
    model = nn.ModuleDict({path: nn.Linear(8, 8)})
    value: Any = {endless: 4} if where == "alpha_pattern" else endless
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"{where}: matching .* takes more than 2 s"):
        lorafam.adapt(model, AdapterConfig(**{where: value}))
    assert time.monotonic() - began < 30
    assert type(model[path]) is nn.Linear


def test_a_long_expression_that_ends_is_taken() -> None:
    model = nn.ModuleDict({"a": nn.ModuleDict({"q_proj": nn.Linear(8, 8), "k_proj": nn.Linear(8, 8)})})
    lorafam.adapt(model, AdapterConfig(target_modules=r"(\w+\.)*(q|v)_.*o.*j.*"))
    assert type(model["a"]["k_proj"]) is nn.Linear
    assert type(model["a"]["q_proj"]) is not nn.Linear


@pytest.mark.parametrize("method", ["lora", "dora", "adalora", "vera"])
def test_adapters_are_fp32_under_a_16_bit_default_dtype(method: str) -> None:
    def made() -> Any:
        torch.manual_seed(0)
        return lorafam.adapt(nn.Sequential(nn.Linear(16, 8)), AdapterConfig(method, r=2, target_modules=["0"]))

    try:
        torch.set_default_dtype(torch.bfloat16)
        narrow = made()
        theirs = get_peft_model(nn.Sequential(nn.Linear(16, 8)), LoraConfig(r=2, target_modules=["0"]))
        layer = narrow[0]
        inside = layer.delta_weight()
    finally:
        torch.set_default_dtype(torch.float32)
    for model in (narrow, theirs):
        assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert narrow[0].base_layer.weight.dtype == torch.bfloat16
    # VeRA's projections are those of the key, which no file has
    torch.testing.assert_close(layer.delta_weight(), inside)
    y = narrow(torch.randn(3, 16, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
