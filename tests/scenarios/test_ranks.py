"""Ranks above any that makes sense: PEFT's results, as far as memory goes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from torch import nn

import lorafam
from lorafam import AdapterConfig
from tests.scenarios.files import by_peft, close, llama, logits, peft_file
from tests.scenarios.test_checks_first import same, state

HUGE = 70_001


@pytest.mark.parametrize("dora", [False, True])
def test_a_rank_that_no_weight_has(dora: bool, tmp_path: Path) -> None:
    peft_file(tmp_path / "theirs", llama(), r=HUGE, target_modules=["q_proj"], use_dora=dora)
    want = by_peft(tmp_path / "theirs", llama())
    model = lorafam.load_adapter(llama(), tmp_path / "theirs")
    close(logits(model), want)
    lorafam.save_adapter(model, tmp_path / "ours")
    close(by_peft(tmp_path / "ours", llama()), want)
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "theirs")
    lorafam.accelerate(theirs)
    close(logits(theirs), want)
    lorafam.merge_and_unload(model)
    close(logits(model), want)


MOST = 10**9
SETTINGS: list[dict[str, Any]] = [
    {"r": MOST},
    {"r": 4, "rank_pattern": {"v_proj": MOST}},
    {"method": "dora", "r": MOST, "quantize": "nf4"},
    {"method": "adalora", "r": MOST},
    {"method": "vera", "r": MOST},
    {"r": MOST, "init": "pissa"},
    {"r": MOST, "target_modules": ["embed_tokens"]},
    {"r": MOST, "target_modules": [], "target_parameters": ["v_proj.weight"]},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_factors_that_have_no_room_are_not_asked_for(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafam.methods.adding.memory_of", lambda device: 24 << 30)
    model = llama()
    before = state(model)
    told = r"r: expected factors that fit into memory, \d+ GB for A and B of rank 1000000000, cpu has 26 GB"
    with pytest.raises(ValueError, match=told):
        lorafam.adapt(model, AdapterConfig(**{"target_modules": ["v_proj"], **settings}))
    same(model, before)


def test_a_layer_asks_what_its_device_has() -> None:
    layer = lorafam.LoraLinear(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="1000000000000, cpu has"):
        layer.add_adapter("b", r=10**12)
    assert list(layer.adapters) == ["default"]
