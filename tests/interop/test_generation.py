"""Generation with unmerged adapters: greedy tokens, key-value cache, decode path; a row its adapter; merged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

import lorafam
from lorafam.interop import fast_forward
from tests.model.tiny import VOCABULARY, disturb, tiny_model, tokens
from tests.tolerances import assert_as_good_as_eager

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def model_of(**settings: Any) -> Any:
    model = get_peft_model(tiny_model(), LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM", **settings))
    disturb(model)
    return model.eval()


def generated(model: Any, **arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens, and the logits of each step."""
    prompt = tokens(length=6)
    out = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=12,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **arguments,
    )
    return out.sequences, torch.stack(out.logits)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_the_same_tokens_one_at_a_time(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(**settings)
    expected, right = generated(model)
    counts: list[int] = []
    name = "dora" if settings.get("use_dora") else "lora"
    real = getattr(fast_forward, name)
    monkeypatch.setattr(fast_forward, name, lambda layer, way, x: (counts.append(x.shape[1]), real(layer, way, x))[1])
    lorafam.accelerate(model)
    found, logits = generated(model)
    assert torch.equal(found, expected)
    torch.testing.assert_close(logits, right, rtol=1e-4, atol=1e-4)
    # the prompt in one pass, then a token at a time
    assert sorted(set(counts)) == [1, 6]


def test_rows_choose_their_adapter(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    model.add_adapter("other", LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"))
    disturb(model, 5)
    names = ["other", "__base__"]
    expected = generated(model, adapter_names=names)
    lorafam.accelerate(model)
    made: list[list[str]] = []
    real = fast_forward.lora_by_row
    monkeypatch.setattr(fast_forward, "lora_by_row", lambda *args: (made.append(args[3]), real(*args))[1])
    found = generated(model, adapter_names=names)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert made
    assert all(row == names for row in made)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}], ids=["lora", "dora"])
def test_merged_equals_unmerged(settings: dict[str, Any]) -> None:
    ours, eager, exact = [], [], []
    for seed in range(2):
        model = model_of(**settings)
        disturb(model, seed)
        batch = torch.randint(0, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            exact.append(copy.deepcopy(model).double()(batch).logits)
            eager.append(model(batch).logits)
            lorafam.accelerate(model)
            ours.append(model.merge_and_unload()(batch).logits)
    assert_as_good_as_eager(ours, eager, exact)
