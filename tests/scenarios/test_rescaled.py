"""RWKV divides weights by powers of two when it evaluates, in place: an adapter beside them isn't divided."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import RwkvConfig, RwkvForCausalLM

import lorafam
from lorafam import AdapterConfig, NF4Linear
from lorafam.model import adapter_layers
from tests.model.tiny import disturb

RESCALED = ("attention.output", "feed_forward.value")


def rwkv(rescale_every: int) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 64, "hidden_size": 64, "attention_hidden_size": 64, "intermediate_size": 128}
    model = RwkvForCausalLM(RwkvConfig(num_hidden_layers=4, rescale_every=rescale_every, use_cache=False, **sizes))
    for parameter in model.parameters():
        # as long as each step's differences count
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(2, 12).unsqueeze(0)).logits


@pytest.mark.parametrize("first", ["train", "eval"])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_what_is_rescaled_is_left_out(quantize: str | None, first: str) -> None:
    model = rwkv(2)
    if first == "eval":
        logits(model.eval())
    with pytest.warns(UserWarning, match="RwkvModel"):
        lorafam.adapt(model, AdapterConfig(r=4, quantize=quantize))
    disturb(model)
    # the first blocks' are divided by one
    adapted = {path.split(".")[2] for path in adapter_layers(model) if path.endswith(RESCALED)}
    assert adapted == {"0", "1"}
    quantised = [path.removesuffix(".base_layer") for path, one in model.named_modules() if isinstance(one, NF4Linear)]
    assert not any(path.endswith(RESCALED) for path in quantised)
    assert bool(quantised) == (quantize is not None)
    # evaluation divides what it multiplies by two for training
    trained, evaluated = logits(model.train()), logits(model.eval())
    torch.testing.assert_close(evaluated, trained, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["output", "value"])
def test_it_is_refused_by_name(name: str) -> None:
    model = rwkv(2)
    with pytest.raises(ValueError, match=rf"\.{name}' can't be adapted: RwkvModel"):
        lorafam.adapt(model, AdapterConfig(r=4, target_modules=[name]))
    assert not adapter_layers(model)


@pytest.mark.parametrize("rescale_every", [0, 4])
@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_where_nothing_is_divided_all_are_adapted(quantize: str | None, rescale_every: int) -> None:
    model = lorafam.adapt(rwkv(rescale_every), AdapterConfig(r=4, quantize=quantize))
    disturb(model)
    assert sum(path.endswith(RESCALED) for path in adapter_layers(model)) == 8
    torch.testing.assert_close(logits(model.eval()), logits(model.train()), rtol=1e-4, atol=1e-4)
