"""Several adapters of a model: switched, disabled, combined as PEFT combines them, mixed in one batch, on disk."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import lorafam
from lorafam import AdapterConfig
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tiny_model, tokens

TARGETS = ["q_proj", "up_proj"]


def model_of(*names: str, quantize: str | None = None, **settings: Any) -> Any:
    """Adapters "default" and `names`, of ranks 4, 5, 6, …; each with values of its own."""
    settings = {"r": 4, "alpha": 6, "target_modules": TARGETS, **settings}
    model = lorafam.adapt(tiny_model(), AdapterConfig(quantize=quantize, **settings))
    disturb(model)
    for seed, name in enumerate(names, 1):
        config = AdapterConfig(**{**settings, "r": settings["r"] + (seed if settings.get("grows", True) else 0)})
        lorafam.add_adapter(model, name, config)
        lorafam.set_adapter(model, name)
        disturb(model, seed)
    lorafam.set_adapter(model, "default")
    return model.eval()


def logits(model: Any, batch: torch.Tensor | None = None) -> torch.Tensor:
    return model(tokens() if batch is None else batch).logits


def logits_of(model: Any, name: str, batch: torch.Tensor | None = None) -> torch.Tensor:
    lorafam.set_adapter(model, name)
    found = logits(model, batch)
    lorafam.set_adapter(model, "default")
    return found


def test_switched_disabled_and_deleted() -> None:
    model = model_of("other")
    first, other = logits(model), logits_of(model, "other")
    assert not torch.allclose(first, other, atol=1e-3)
    assert torch.equal(logits(model), first)
    with lorafam.disabled(model):
        torch.testing.assert_close(logits(model), logits(tiny_model().eval()), rtol=1e-5, atol=1e-5)
        with lorafam.disabled(model):
            pass
        torch.testing.assert_close(logits(model), logits(tiny_model().eval()), rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model), first)
    lorafam.delete_adapter(model, "other")
    assert all(list(layer.adapters) == ["default"] for layer in adapter_layers(model).values())
    assert torch.equal(logits(model), first)


def test_only_the_active_one_trains() -> None:
    model = model_of("other")
    for layer in adapter_layers(model).values():
        assert layer.adapters["default"].A.requires_grad
        assert not layer.adapters["other"].A.requires_grad
    lorafam.add_adapter(model, "third")
    assert not any(
        p.requires_grad for layer in adapter_layers(model).values() for p in layer.adapters["third"].parameters()
    )


@pytest.mark.parametrize("quantize", [None, "nf4"])
def test_rows_of_a_batch_choose(quantize: str | None) -> None:
    model = model_of("other", "third", quantize=quantize)
    batch = tokens(rows=5)
    names = ["other", None, "default", "third", "other"]
    with lorafam.disabled(model):
        base = logits(model, batch)
    alone = {name: logits_of(model, name, batch) for name in ("default", "other", "third")}
    with lorafam.adapters_by_row(model, names):
        found = logits(model, batch)
        with pytest.raises(ValueError, match="x: expected a batch of 5 rows"):
            logits(model, batch[:2])
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], (base if name is None else alone[name])[row], rtol=1e-4, atol=1e-5)
    assert torch.equal(logits(model, batch), alone["default"])
    with lorafam.adapters_by_row(model, [None] * 5):
        assert torch.equal(logits(model, batch), base)


def peft_model_of(model: Any, weights: list[float], how: str) -> Any:
    """PEFT's model with the same two adapters, and its combination of them."""
    theirs: Any = None
    for name in ("default", "other"):
        rank = next(iter(adapter_layers(model).values())).adapters[name].rank
        config = LoraConfig(r=rank, lora_alpha=6, target_modules=TARGETS)
        if theirs is None:
            theirs = get_peft_model(tiny_model(), config)
        else:
            theirs.add_adapter(name, config)
    modules = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        for path, layer in adapter_layers(model).items():
            for name in ("default", "other"):
                modules[path].lora_A[name].weight.copy_(layer.adapters[name].A)
                modules[path].lora_B[name].weight.copy_(layer.adapters[name].B)
    theirs.add_weighted_adapter(["default", "other"], weights, "new", combination_type=how)
    theirs.set_adapter("new")
    return theirs.eval()


@pytest.mark.parametrize("weights", [[0.7, 0.4], [1.0, -0.5]])
@pytest.mark.parametrize("how", ["linear", "cat", "svd"])
def test_combined_as_in_peft(how: str, weights: list[float]) -> None:
    model = model_of()
    config = AdapterConfig(r=4 if how == "linear" else 6, alpha=6, target_modules=TARGETS)
    lorafam.add_adapter(model, "other", config)
    lorafam.set_adapter(model, "other")
    disturb(model, 5)
    lorafam.set_adapter(model, "default")
    lorafam.combine_adapters(model, ["default", "other"], weights, "new", how)
    expected = peft_model_of(model, weights, how)(tokens()).logits
    torch.testing.assert_close(logits_of(model, "new"), expected, rtol=1e-3, atol=1e-4)


def test_cat_is_the_sum_and_svd_its_best() -> None:
    model = model_of("other")
    lorafam.combine_adapters(model, ["default", "other"], [0.5, 2.0], "cat", "cat")
    lorafam.combine_adapters(model, ["default", "other"], [0.5, 2.0], "svd", "svd", rank=3)
    for layer in adapter_layers(model).values():
        parts = {name: adapter.scaling * adapter.B @ adapter.A for name, adapter in layer.adapters.items()}
        whole = 0.5 * parts["default"] + 2.0 * parts["other"]
        torch.testing.assert_close(parts["cat"], whole, rtol=1e-4, atol=1e-5)
        left = torch.linalg.svdvals(whole.double())[3:].square().sum().sqrt()
        assert (parts["svd"] - whole).norm().item() == pytest.approx(left.item(), rel=1e-3)


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_named_adapters_on_disk(method: str, tmp_path: Path) -> None:
    model = model_of("other", method=method, dora_dropout="input")
    expected = {name: logits_of(model, name) for name in ("default", "other")}
    for name in expected:
        lorafam.save_adapter(model, tmp_path / name, name)
        theirs = PeftModel.from_pretrained(tiny_model(), str(tmp_path / name)).eval()
        torch.testing.assert_close(theirs(tokens()).logits, expected[name], rtol=1e-4, atol=1e-5)
    again = lorafam.load_adapter(tiny_model(), tmp_path / "default").eval()
    lorafam.load_adapter(again, tmp_path / "other", "second")
    torch.testing.assert_close(logits(again), expected["default"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(again, "second"), expected["other"], rtol=1e-5, atol=1e-5)
    before = copy.deepcopy(again.state_dict())
    (tmp_path / "other" / "adapter_model.safetensors").write_bytes(b"not one")
    with pytest.raises(ValueError, match="damaged"):
        lorafam.load_adapter(again, tmp_path / "other", "third")
    assert before.keys() == again.state_dict().keys()


def test_what_is_refused() -> None:
    model = model_of("other")
    dora = model_of(method="dora")
    for call, error, message in (
        (lambda: lorafam.add_adapter(model, "other"), ValueError, "expected a new one"),
        (
            lambda: lorafam.add_adapter(model, "new", AdapterConfig(method="adalora")),
            ValueError,
            "expected the method 'lora'",
        ),
        (lambda: lorafam.add_adapter(tiny_model(), "new"), ValueError, "expected one with adapters"),
        (lambda: lorafam.set_adapter(model, "none"), KeyError, "expected one of"),
        (lambda: lorafam.delete_adapter(model, "default"), ValueError, "is the active adapter"),
        (lambda: lorafam.combine_adapters(model, ["default"], [1, 2], "new"), ValueError, "as many of each"),
        (lambda: lorafam.combine_adapters(model, ["default"], [1], "other"), ValueError, "expected a new one"),
        (lambda: lorafam.combine_adapters(model, ["default"], [1], "new", "ties"), ValueError, "how: expected one of"),
        (lambda: lorafam.combine_adapters(model, ["default", "other"], [1, 1], "n", "linear"), ValueError, "one rank"),
        (lambda: lorafam.combine_adapters(dora, ["default"], [1], "new"), ValueError, "expected LoRA layers"),
        (lambda: lorafam.adapters_by_row(dora, ["default"]).__enter__(), ValueError, "expected LoRA layers"),
        (lambda: lorafam.adapters_by_row(model, ["none"]).__enter__(), KeyError, "expected one of"),
        (lambda: lorafam.adapters_by_row(model, []).__enter__(), ValueError, "one for each row, got none"),
    ):
        with pytest.raises(error, match=message):
            call()
