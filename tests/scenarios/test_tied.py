"""Weights that several modules share: quantised, tied again, saved and merged without changing another's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn

import lorafam
from lorafam import AdapterConfig, NF4Linear
from tests.model.tiny import disturb
from tests.scenarios.files import close, llama, logits


class Tied(nn.Module):
    """A head that is the table's, in a model that doesn't tell which its head is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.inner = nn.Embedding(64, 64), nn.Linear(64, 64)
        self.head = nn.Linear(64, 64, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.table(ids)))


def _with_parameter(model: Any) -> None:
    model.head.weight = model.table.weight


def _with_memory(model: Any) -> None:
    model.head.weight = nn.Parameter(model.table.weight.detach())


def _with_a_linear(model: Any) -> None:
    model.twin = nn.Linear(64, 64)
    model.head.weight = model.twin.weight


def _at_two_places(model: Any) -> None:
    model.again = nn.ModuleList([model.head])


TYINGS: dict[str, tuple[Callable[[Any], None], list[str]]] = {
    "one parameter": (_with_parameter, ["head"]),
    "one memory": (_with_memory, ["head"]),
    "of another linear layer": (_with_a_linear, ["head", "twin"]),
    "one module at two places": (_at_two_places, ["head"]),
}


@pytest.mark.parametrize("targets", [["inner"], ["inner", "head"]])
@pytest.mark.parametrize("tying", TYINGS)
def test_a_weight_that_another_module_has_is_not_quantised(tying: str, targets: list[str]) -> None:
    tie, left = TYINGS[tying]
    model = Tied()
    tie(model)
    if tying == "one module at two places" and "head" in targets:
        targets = ["inner"]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"quantize='nf4': 'head'.* dense, since other modules") as told:
        lorafam.adapt(model, AdapterConfig(r=4, target_modules=targets, quantize="nf4"))
    assert sum("quantize" in str(one.message) for one in told) == 1
    quantised = [path.removesuffix(".base_layer") for path, one in model.named_modules() if isinstance(one, NF4Linear)]
    assert quantised == ["inner"]
    ids = torch.arange(8)
    inner = model.inner.base_layer
    wanted = torch.nn.functional.linear(weights["table.weight"][ids], inner.weight.dequantize(torch.float32))
    wanted = torch.nn.functional.linear(wanted + inner.bias, weights["head.weight"])
    torch.testing.assert_close(model(ids), wanted, rtol=1e-4, atol=1e-5)
    for path in left:
        module = model.get_submodule(path)
        assert torch.equal(module.weight, weights[f"{path}.weight"])
    disturb(model)
    assert torch.isfinite(model(ids)).all()


def test_nothing_is_said_where_nothing_is_left_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lorafam.adapt(Tied(), AdapterConfig(r=4, target_modules=["inner"], quantize="nf4"))


AROUND: dict[str, dict[str, Any]] = {
    "head": {"target_modules": ["lm_head"]},
    "table": {"target_modules": ["embed_tokens"]},
    "both": {"target_modules": ["lm_head", "embed_tokens"]},
    "head saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "table saved whole": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5]},
}


@pytest.mark.parametrize("around", AROUND)
def test_tying_again_ties_bases(around: str) -> None:
    model: Any = lorafam.adapt(llama(tied=True), AdapterConfig(r=4, **AROUND[around]))
    disturb(model)
    before = logits(model)
    types = [type(module) for module in model.modules()]
    model.tie_weights()
    assert torch.equal(logits(model), before)
    assert [type(module) for module in model.modules()] == types
    # what came apart is tied again
    base = model.lm_head
    while hasattr(base, "base_layer"):
        base = base.base_layer
    base.weight = nn.Parameter(base.weight.detach().clone(), requires_grad=False)
    model.tie_weights()
    assert base.weight is model.get_input_embeddings().weight or around in ("table saved whole", "tokens")
    assert torch.equal(logits(model), before)


def test_a_merged_head_is_not_tied_again() -> None:
    model: Any = lorafam.adapt(llama(tied=True), AdapterConfig(r=4, target_modules=["lm_head"]))
    disturb(model)
    model.lm_head.merge()
    before = logits(model)
    with pytest.raises(ValueError, match="tie_weights: 'lm_head' is merged, unmerge it first"):
        model.tie_weights()
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("around", AROUND)
def test_tables_with_an_adapter_are_not_resized(around: str) -> None:
    model: Any = lorafam.adapt(llama(tied=True), AdapterConfig(r=4, **AROUND[around]))
    disturb(model)
    before = logits(model)
    with pytest.raises(ValueError, match=r"resize_token_embeddings: '.*' has an adapter for the tokens"):
        model.resize_token_embeddings(60)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("tied", [True, False])
def test_tables_without_an_adapter_are_resized_and_saved(tied: bool, tmp_path: Path) -> None:
    model: Any = lorafam.adapt(llama(tied), AdapterConfig(r=4, target_modules=["q_proj"]))
    disturb(model)
    before = logits(model)
    model.resize_token_embeddings(60)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model.lm_head.weight.shape[0] == 60
    close(logits(model)[..., :50], before)
    lorafam.save_adapter(model, tmp_path)
    with pytest.raises(ValueError, match="a vocabulary that grew needs resize_token_embeddings first"):
        lorafam.load_adapter(llama(tied), tmp_path)
    for load in (PeftModel.from_pretrained, lorafam.load_adapter):
        fresh: Any = llama(tied)
        fresh.resize_token_embeddings(60)
        close(logits(load(fresh, tmp_path)), logits(model))
