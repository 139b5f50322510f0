"""PEFT's whole interface on an accelerated model: every call gives what it gives without, and never disturbs."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import DoraCaching, rescale_adapter_scale
from torch import nn

import lorafam
from lorafam.interop import fast_forward, fast_layers, shared_inputs
from tests.interop.tiny_lm import BASES, METHODS, TinyLM, config_of, losses, peft_model, tokens

each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the fast forwards computed: tests that compare must not compare PEFT with itself."""
    made: list[str] = []
    for name in ("lora", "dora", "adalora"):
        monkeypatch.setattr(fast_forward, name, _counting(name, getattr(fast_forward, name), made))
    monkeypatch.setattr(fast_layers, "vera_forward", _counting("vera", fast_layers.vera_forward, made))
    real = shared_inputs.together

    def together(layers: list[Any], *args: Any) -> Any:
        made.extend("adalora" if hasattr(layer, "lora_E") else "lora" for layer in layers)
        return real(layers, *args)

    monkeypatch.setattr(shared_inputs, "together", together)
    return made


def _counting(name: str, function: Callable[..., Any], made: list[str]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        made.append(name)
        return function(*args)

    return call


def pair(method: str = "lora", base: str = "fp32", **settings: Any) -> tuple[Any, Any]:
    """PEFT's model and an accelerated one, equal."""
    plain, fast = (peft_model(method, base, **settings).eval() for _ in range(2))
    lorafam.accelerate(fast)
    return plain, fast


def logits(model: nn.Module, **arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(tokens(), **arguments)


def assert_same(plain: nn.Module, fast: nn.Module, **arguments: Any) -> None:
    torch.testing.assert_close(logits(fast, **arguments), logits(plain, **arguments), rtol=2e-5, atol=2e-5)


def disturbed(model: Any) -> Any:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "vera_" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


@each_method
@pytest.mark.parametrize("base", ["fp32", "nf4"])
def test_disabled_is_exactly_the_base(method: str, base: str, calls: list[str]) -> None:
    plain, fast = pair(method, base)
    before = logits(fast)
    made = len(calls)
    assert made
    with plain.disable_adapter(), fast.disable_adapter():
        assert torch.equal(logits(fast), logits(plain))
    assert len(calls) == made
    assert torch.equal(logits(fast), before)


def test_several_adapters_switched_and_together(calls: list[str]) -> None:
    models = pair()
    for model in models:
        torch.manual_seed(1)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q", "up"], init_lora_weights=False))
        model.add_adapter("third", LoraConfig(r=3, target_modules=["q", "head"], init_lora_weights=False))
    for names in ("other", "third", "default", ["default", "other", "third"]):
        for model in models:
            model.base_model.set_adapter(names)
        made = len(calls)
        assert_same(*models)
        assert len(calls) > made
    for model in models:
        model.delete_adapter("third")
        model.set_adapter("other")
    assert_same(*models)


def test_adapters_added_later_are_accelerated_and_taken_back() -> None:
    _, model = pair()
    model.add_adapter("other", config_of("lora", target_modules=["head"]))
    head = model.base_model.model.head
    assert head.lorafam_plan().reason.startswith("no active adapter")
    model.set_adapter("other")
    assert head.lorafam_plan().path == "fused"
    lorafam.decelerate(model)
    assert not any("_lorafam" in child.__dict__ for child in model.modules())
    assert type(model.base_model).__module__ == "peft.tuners.lora.model"


def test_rows_choose_their_adapter() -> None:
    models = pair()
    for model in models:
        torch.manual_seed(1)
        model.add_adapter("other", LoraConfig(r=2, target_modules=["q"], init_lora_weights=False))
    names = ["default", "other", "__base__", "default"]
    assert_same(*models, adapter_names=names)


@pytest.mark.parametrize("base", ["fp32", "nf4"])
@pytest.mark.parametrize("method", ["lora", "dora", "rslora"])
def test_merge_and_unmerge(method: str, base: str) -> None:
    plain, fast = pair(method, base)
    before = logits(fast)
    for model in (plain, fast):
        model.merge_adapter()
    assert_same(plain, fast)
    for model in (plain, fast):
        model.unmerge_adapter()
    assert_same(plain, fast)
    assert (logits(fast) - before).abs().max() < (1e-4 if base == "fp32" else 1)
    for model in (plain, fast):
        model.merge_adapter()
    assert_same(plain.merge_and_unload(), fast.merge_and_unload())


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_unload_gives_the_base(method: str) -> None:
    plain, fast = pair(method)
    assert torch.equal(logits(fast.unload()), logits(plain.unload()))


def test_weighted_adapters() -> None:
    models = pair()
    for model in models:
        torch.manual_seed(1)
        model.add_adapter("other", config_of("lora", init_lora_weights=False))
        model.add_weighted_adapter(["default", "other"], [0.7, 0.4], "sum", combination_type="cat")
        model.set_adapter("sum")
    assert_same(*models)


def test_patterns_and_saved_modules() -> None:
    settings = {"rank_pattern": {"up": 2}, "alpha_pattern": {"down": 3}, "modules_to_save": ["head"]}
    models = pair(**settings)
    assert models[1].base_model.model.block.up.r["default"] == 2
    assert_same(*models)
    for model in models:
        losses(model.train(), tokens()).mean().backward()
    head = models[1].base_model.model.head.modules_to_save["default"].weight
    assert head.grad is not None
    assert head.grad.abs().sum() > 0


@each_method
@pytest.mark.parametrize("base", ["fp32", "nf4"])
def test_copies_and_pickles_stay_accelerated(method: str, base: str, calls: list[str]) -> None:
    _, fast = pair(method, base)
    expected = logits(fast)
    for copied in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        calls.clear()
        assert torch.equal(logits(copied), expected)
        assert calls
        # a copy's own values, not those of the original
        disturbed(copied)
        assert not torch.equal(logits(copied), expected)
        assert torch.equal(logits(fast), expected)
        lorafam.decelerate(copied)
        assert not any("_lorafam" in child.__dict__ for child in copied.modules())


@each_method
def test_saved_adapters_load_in_plain_peft(method: str, tmp_path: Path) -> None:
    _, fast = pair(method)
    fast.save_pretrained(tmp_path)
    torch.manual_seed(0)
    plain = PeftModel.from_pretrained(TinyLM(), tmp_path).eval()
    assert_same(plain, fast)
    again = PeftModel.from_pretrained(_base(), tmp_path).eval()
    lorafam.accelerate(again)
    assert torch.equal(logits(again), logits(fast))


def _base() -> TinyLM:
    torch.manual_seed(0)
    return TinyLM()


@pytest.mark.parametrize("method", ["lora", "dora", "rslora", "lora_bias"])
def test_scalings_that_change(method: str) -> None:
    plain, fast = pair(method)
    for change in (_set_scale, _scale_layer, _unscale_layer, _assign):
        for model in (plain, fast):
            change(model.base_model.model.block)
        assert_same(plain, fast)
    with rescale_adapter_scale(plain, 0.5), rescale_adapter_scale(fast, 0.5):
        assert_same(plain, fast)
    assert_same(plain, fast)


def _set_scale(block: Any) -> None:
    block.q.set_scale("default", 3.0)


def _scale_layer(block: Any) -> None:
    block.up.scale_layer(0.25)


def _unscale_layer(block: Any) -> None:
    block.up.unscale_layer()


def _assign(block: Any) -> None:
    block.k.scaling["default"] = 0.125
    block.v.scaling.update({"default": 4.0})


@pytest.mark.parametrize("base", BASES)
def test_a_single_layer_and_a_context(base: str, calls: list[str]) -> None:
    model = peft_model("lora", base).eval()
    layer = model.base_model.model.block.up
    before = logits(model)
    report = lorafam.accelerate(layer)
    assert [row.name for row in report.rows] == [""]
    logits(model)
    assert len(calls) == 1
    with lorafam.accelerated(model) as report:
        assert len(report.rows) == 6
        logits(model)
        assert len(calls) == 7
    # what was accelerated before stays so
    logits(model)
    assert len(calls) == 8
    lorafam.decelerate(layer)
    assert torch.equal(logits(model), before)
    assert len(calls) == 8


def test_offloading_hooks_of_accelerate_call_the_fast_forward(calls: list[str]) -> None:
    model = peft_model("lora", "fp32").eval()
    layer = model.base_model.model.block.up
    add_hook_to_module(layer, AlignDevicesHook(execution_device="cpu"))
    expected = logits(model)
    lorafam.accelerate(layer)
    torch.testing.assert_close(logits(model), expected, rtol=2e-5, atol=2e-5)
    assert calls == ["lora"]
    lorafam.decelerate(layer)
    assert torch.equal(logits(model), expected)
    assert calls == ["lora"]
    # offloaded parts: PEFT's code calls the modules, whose hooks fetch the weights
    lorafam.accelerate(layer)
    add_hook_to_module(layer.base_layer, AlignDevicesHook(execution_device="cpu", offload=True))
    add_hook_to_module(layer.lora_A["default"], AlignDevicesHook(execution_device="cpu", offload=True))
    assert layer.lora_A["default"].weight.device.type == "meta"
    torch.testing.assert_close(logits(model), expected, rtol=2e-5, atol=2e-5)


def test_evaluation_before_training_loses_no_gradient_on_four_bits() -> None:
    """bitsandbytes repacks such a weight in an evaluation forward, after which gradients stop at the layer."""
    trained: list[dict[str, torch.Tensor]] = []
    for evaluate in (False, True):
        model = peft_model("dora", "nf4")
        for child in model.modules():
            if hasattr(child, "support_avx512bf16_for_cpu"):
                child.support_avx512bf16_for_cpu = True
        lorafam.accelerate(model)
        if evaluate:
            logits(model.eval())
        losses(model.train(), tokens()).mean().backward()
        trained.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        lorafam.decelerate(model)
        assert all(getattr(child, "support_avx512bf16_for_cpu", True) for child in model.modules())
    assert trained[0].keys() == trained[1].keys()
    assert trained[0]
    assert all(torch.equal(trained[1][name], gradient) for name, gradient in trained[0].items())


def _fused(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.05, fused=True)


def _bitsandbytes(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    import bitsandbytes

    return bitsandbytes.optim.AdamW(parameters, lr=0.05)


def _behind_versions(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    class Sgd(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.sub_(parameter.grad, alpha=0.05)

    return Sgd(parameters, lr=0.05)


@pytest.mark.parametrize("base", ["fp32", "nf4"])
@pytest.mark.parametrize("make", [_fused, _bitsandbytes, _behind_versions])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_no_optimiser_leaves_a_stale_norm(make: Callable[..., Any], base: str, mode: str) -> None:
    plain, fast = (model.train(mode == "train") for model in pair("dora", base))
    optimizers = [make([p for p in model.parameters() if p.requires_grad]) for model in (plain, fast)]
    for _ in range(3):
        torch.testing.assert_close(logits(fast), logits(plain), rtol=1e-3, atol=1e-3)
        for model, optimizer in zip((plain, fast), optimizers, strict=True):
            losses(model, tokens()).mean().backward()
            logits(model)
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(logits(fast), logits(plain), rtol=1e-3, atol=1e-3)


def test_the_norm_is_kept_for_frozen_adapters_until_something_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    from lorafam import functional

    made: list[int] = []
    row_norm = functional.row_norm
    monkeypatch.setattr(functional, "row_norm", lambda *a, **k: (made.append(1), row_norm(*a, **k))[1])
    plain, fast = pair("dora")
    for model in (plain, fast):
        model.requires_grad_(False)

    def formed() -> int:
        made.clear()
        assert_same(plain, fast)
        return len(made)

    assert formed() == 6
    assert formed() == 0
    block = [model.base_model.model.block for model in (plain, fast)]
    with torch.no_grad():
        for part in block:
            part.q.lora_A["default"].weight.mul_(1.5)
            part.k.lora_B["default"].weight.data = part.k.lora_B["default"].weight.data * 2
            part.v.scaling["default"] = 0.1
            part.up.base_layer.weight.mul_(1.1)
    assert formed() == 4
    assert formed() == 0
    for model in (plain, fast):
        model.merge_adapter()
        model.unmerge_adapter()
    assert formed() == 6


def test_pefts_caching_of_norms_is_pefts(calls: list[str]) -> None:
    plain, fast = pair("dora", target_modules=["embed", "q"])
    with DoraCaching():
        assert_same(plain, fast)
        made = len(calls)
        block = fast.base_model.model.block
        kept = block.q.lora_magnitude_vector["default"]._dora_cache
        assert "weight-norm-default" in kept
        # trainable factors too: whoever asks for PEFT's caching knows when it is stale
        with torch.no_grad():
            for model in (plain, fast):
                model.base_model.model.block.q.lora_A["default"].weight.mul_(2)
        assert_same(plain, fast)
        assert len(calls) > made
    assert kept
    assert_same(plain, fast)
    assert not kept


def test_wrong_arguments() -> None:
    for call in (lorafam.accelerate, lorafam.decelerate):
        with pytest.raises(TypeError, match="module: expected a model or a layer, got int"):
            call(3)
    report = lorafam.accelerate(TinyLM())
    assert report.rows == []
    assert "no layer of this TinyLM is one of PEFT's" in str(report)
    own = lorafam.adapt(TinyLM(), lorafam.AdapterConfig(r=2, target_modules=["q"]))
    assert "lorafam's own" in str(lorafam.accelerate(own))
    lorafam.decelerate(own)


def test_errors_are_pefts() -> None:
    plain, fast = (model.base_model.model.block.up for model in pair())
    for argument in (torch.zeros(2, 63), torch.zeros(2, 64, dtype=torch.bfloat16)):
        with pytest.raises(RuntimeError) as expected:
            plain(argument)
        with pytest.raises(RuntimeError) as found:
            fast(argument)
        assert str(found.value) == str(expected.value)


def test_transformed_forwards_are_plain_operations() -> None:
    plain, fast = (model.base_model.model.block.up for model in pair())
    x, t = torch.randn(3, 64), torch.randn(3, 64)
    per_row = torch.func.vmap(torch.func.grad(lambda layer, row: layer(row).square().sum(), argnums=1), (None, 0))
    torch.testing.assert_close(per_row(fast, x), per_row(plain, x))
    for layer in (plain, fast):
        assert torch.func.jvp(layer, (x,), (t,))[1].shape == (3, 128)
    traced = torch.jit.trace(fast, x, check_trace=False)
    torch.testing.assert_close(traced(t), plain(t))
    exported = torch.export.export(fast.eval(), (x,)).module()
    torch.testing.assert_close(exported(t), plain(t))


def test_embeddings_with_dora() -> None:
    plain, fast = pair("dora", target_modules=["embed", "q"])
    assert fast.base_model.model.embed.lorafam_plan().path == "base + low rank"
    assert_same(plain, fast)
    gradients = []
    for model in (plain, fast):
        losses(model.train(), tokens()).mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_conv1d(calls: list[str]) -> None:
    from transformers.pytorch_utils import Conv1D

    def model(method: str) -> Any:
        torch.manual_seed(0)
        inner = nn.Sequential(Conv1D(72, 64), nn.Tanh(), Conv1D(8, 72))
        config = config_of(method, target_modules=["0", "2"], fan_in_fan_out=True, init_lora_weights=False)
        return get_peft_model(inner, config)

    for method in ("lora", "dora"):
        plain, fast = model(method), model(method)
        assert lorafam.accelerate(fast).count("fused") == 2
        x = torch.randn(5, 64)
        gradients = []
        for net in (plain, fast):
            given = x.clone().requires_grad_()
            y = net(given)
            y.square().sum().backward()
            gradients.append([y, given.grad, *(p.grad for p in net.parameters() if p.grad is not None)])
        for a, b in zip(*gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert set(calls) == {"lora", "dora"}
