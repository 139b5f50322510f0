"""PEFT's VeRA layers accelerated, in every mode (`test_same_results` has the bases)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import VeraConfig, get_peft_model

import lorafam
from lorafam.interop.report import FUSED, PEFT
from tests.model.tiny import disturb, tiny_model, tokens

TARGETS = ["q_proj", "v_proj", "down_proj"]


def peft_model(**settings: Any) -> Any:
    model = get_peft_model(tiny_model(), VeraConfig(r=5, target_modules=TARGETS, **settings))
    disturb(model)
    return model


def result(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss = model(tokens(), labels=tokens()).loss
    loss.backward()
    return {"loss": loss.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


def test_same_results() -> None:
    model = peft_model()
    expected = result(model)
    report = lorafam.accelerate(model)
    vera = [row for row in report.rows if any(row.name.endswith(name) for name in TARGETS)]
    assert len(vera) == 6
    assert all(row.path == FUSED for row in vera), report
    fast = result(model)
    assert fast.keys() == expected.keys()
    assert len(fast) == 1 + 2 * len(vera)
    for name, value in expected.items():
        torch.testing.assert_close(
            fast[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    lorafam.decelerate(model)
    again = result(model)
    assert all(torch.equal(again[name], value) for name, value in expected.items())


def test_modes() -> None:
    model = peft_model().eval()
    expected = model(tokens()).logits
    with model.disable_adapter():
        base = model(tokens()).logits
    lorafam.accelerate(model)
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-5)
    with model.disable_adapter():
        assert torch.equal(model(tokens()).logits, base)
    model.merge_adapter()
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(copy.deepcopy(model)(tokens()).logits, expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(tokens()).logits.float(), expected, rtol=0.1, atol=0.1)


def test_a_second_adapter() -> None:
    model = peft_model()
    lorafam.accelerate(model)
    model.add_adapter("b", VeraConfig(r=5, target_modules=TARGETS))
    plain = peft_model()
    plain.add_adapter("b", VeraConfig(r=5, target_modules=TARGETS))
    for one in (model, plain):
        one.set_adapter("b")
        disturb(one, 7)
    torch.testing.assert_close(model.eval()(tokens()).logits, plain.eval()(tokens()).logits, rtol=1e-4, atol=1e-5)


def test_dropout_while_training() -> None:
    model = peft_model(vera_dropout=0.5)
    lorafam.accelerate(model)
    model.train()
    assert not torch.equal(model(tokens()).logits, model(tokens()).logits)
    model.eval()
    assert torch.equal(model(tokens()).logits, model(tokens()).logits)


def test_hooks_on_the_base() -> None:
    model = peft_model().eval()
    expected = model(tokens()).logits
    seen = []
    for module in model.modules():
        if type(module).__name__ == "Linear" and hasattr(module, "base_layer"):
            module.base_layer.register_forward_hook(lambda *_: seen.append(1))
    report = lorafam.accelerate(model)
    assert PEFT not in {row.path for row in report.rows if row.name.endswith("q_proj")}
    torch.testing.assert_close(model(tokens()).logits, expected, rtol=1e-4, atol=1e-5)
    assert len(seen) == 6
