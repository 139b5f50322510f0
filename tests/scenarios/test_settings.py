"""Settings have types and names: a wrong one is refused at once, with its name, what was expected and what came."""

from __future__ import annotations

import pickle
import time
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.model import expressions

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rslora": "false"}, "rslora: expected True or False, got 'false'"),
    ({"double_quant": "no"}, "double_quant: expected True or False, got 'no'"),
    ({"bias": "none"}, "bias: expected True or False, got 'none'"),
    ({"bias": "lora_only"}, "bias: expected True or False, got 'lora_only'"),
    ({"dora_norm_gradient": 1}, "dora_norm_gradient: expected True or False, got 1"),
    ({"r": 8.0}, "r: expected a positive integer, got 8.0"),
    ({"r": True}, "r: expected a positive integer, got True"),
    ({"r": "8"}, "r: expected a positive integer, got '8'"),
    ({"r": 10**9}, "r: expected a rank of at most 65536, got 1000000000"),
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
