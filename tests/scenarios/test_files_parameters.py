"""Adapters of parameters, a mixture's experts above all (PEFT's target_parameters): files both ways, in any state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorafam
from lorafam import AdapterConfig
from lorafam.methods import LoraParameter
from lorafam.model import adapter_layers
from tests.model.tiny import disturb
from tests.scenarios.files import by_peft, close, llama, logits, peft_file

_SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip


def mixtral() -> nn.Module:
    torch.manual_seed(0)
    return T.MixtralForCausalLM(T.MixtralConfig(**_SIZES, num_local_experts=4))


def qwen3_moe() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
    return T.Qwen3MoeForCausalLM(T.Qwen3MoeConfig(**_SIZES, **sizes))


def gpt_oss() -> nn.Module:
    torch.manual_seed(0)
    config = T.GptOssConfig(
        **_SIZES, head_dim=8, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"]
    )
    return T.GptOssForCausalLM(config)


BOTH = ["experts.gate_up_proj", "experts.down_proj"]
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "experts": (mixtral, {"target_modules": [], "target_parameters": BOTH}),
    "experts and attention": (mixtral, {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "one projection": (mixtral, {"target_modules": [], "target_parameters": ["down_proj"], "use_rslora": True}),
    "patterns": (
        qwen3_moe,
        {
            "target_modules": ["q_proj"],
            "target_parameters": BOTH,
            "rank_pattern": {"gate_up_proj": 2},
            "alpha_pattern": {"down_proj": 3},
        },
    ),
    "transposed": (gpt_oss, {"target_modules": ["q_proj"], "target_parameters": BOTH}),
    "router": (mixtral, {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]}),
    "all modules left out": (
        mixtral,
        {"target_modules": ["q_proj"], "exclude_modules": ["q_proj"], "target_parameters": BOTH},
    ),
    "a layer's weight": (mixtral, {"target_modules": [], "target_parameters": ["q_proj.weight"]}),
}
each = pytest.mark.parametrize("name", CASES)
# a key of a pattern that is a parameter's
told = pytest.mark.filterwarnings("error:.*no adapted module is called")


@told
@each
def test_both_ways_and_merged(name: str, tmp_path: Path) -> None:
    make, settings = CASES[name]
    theirs = get_peft_model(make(), LoraConfig(r=4, **settings))
    disturb(theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    want = logits(PeftModel.from_pretrained(make(), tmp_path / "theirs"))
    base = logits(make())
    assert (want - base).norm() > 1e-3 * want.norm()
    ours = lorafam.load_adapter(make(), tmp_path / "theirs")
    close(logits(ours), want)
    lorafam.save_adapter(ours, tmp_path / "ours")
    close(logits(PeftModel.from_pretrained(make(), tmp_path / "ours")), want)
    close(logits(lorafam.load_adapter(make(), tmp_path / "ours")), want)
    disturb(ours, 7)
    close(logits(lorafam.load_adapter(ours, tmp_path / "theirs")), want)
    for layer in adapter_layers(ours).values():
        layer.merge()
    close(logits(ours), want)
    with lorafam.disabled(ours):
        close(logits(ours), base)
    for layer in adapter_layers(ours).values():
        layer.unmerge()
    close(logits(ours), want)
    make().save_pretrained(tmp_path / "model")
    lorafam.merge_files(tmp_path / "model", tmp_path / "theirs", tmp_path / "files", max_shard_size="8KB")
    lorafam.merge_and_unload(ours)
    assert not adapter_layers(ours)
    ours.save_pretrained(tmp_path / "unloaded")
    for folder in ("files", "unloaded"):
        close(logits(type(ours).from_pretrained(tmp_path / folder)), want)


@told
@each
def test_beside_another(name: str, tmp_path: Path) -> None:
    make, settings = CASES[name]
    theirs = get_peft_model(make(), LoraConfig(r=4, **settings))
    disturb(theirs)
    theirs.save_pretrained(tmp_path)
    model = lorafam.adapt(make(), AdapterConfig(r=3, target_modules=["v_proj"]))
    disturb(model)
    first = logits(model)
    lorafam.load_adapter(model, tmp_path, "b")
    assert torch.equal(logits(model), first)
    lorafam.set_adapter(model, "b")
    close(logits(model), logits(theirs))
    lorafam.add_adapter(model, "c", AdapterConfig(r=2, **{k: v for k, v in settings.items() if "target_" in k}))
    lorafam.set_adapter(model, "c")
    close(logits(model), logits(make()))
    lorafam.set_adapter(model, "default")
    for one in "bc":
        lorafam.delete_adapter(model, one)
    assert torch.equal(logits(model), first)
    assert not any(isinstance(module, LoraParameter) for module in model.modules())


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("make", [mixtral, gpt_oss])
def test_gradients_are_pefts(make: Callable[[], nn.Module], grouped: bool) -> None:
    settings: dict[str, Any] = {"target_modules": [], "target_parameters": BOTH}
    ours, theirs = (
        lorafam.adapt(make(), AdapterConfig(r=4, alpha=8, **settings)),
        get_peft_model(make(), LoraConfig(r=4, lora_alpha=8, **settings)),
    )
    disturb(ours)
    # PEFT's inner layer is the first parameter's, as here
    mine = {n: p for n, p in ours.named_parameters() if p.requires_grad}
    names = {"adapters.default.A": "lora_A.default.weight", "adapters.default.B": "lora_B.default.weight"}
    with torch.no_grad():
        for name, parameter in mine.items():
            for own, other in names.items():
                if name.endswith(own):
                    theirs.get_parameter(f"base_model.model.{name.replace(own, other)}").copy_(parameter)
    if not grouped:
        for module in ours.modules():
            if isinstance(module, LoraParameter):
                module.holder.register_forward_hook(lambda *args: None)
    ids = torch.arange(3, 13).unsqueeze(0)
    for model in (ours, theirs):
        model.train()(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in mine.items():
        own = next(own for own in names if name.endswith(own))
        other = theirs.get_parameter(f"base_model.model.{name.replace(own, names[own])}")
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_parameters": ["nothing"]}, "target_parameters: no parameter is called 'nothing'"),
        ({"target_parameters": ["q_proj.weight"], "target_modules": ["q_proj"]}, "target_parameters: .*can't be"),
    ],
)
def test_what_can_not_be_adapted(settings: dict[str, Any], message: str) -> None:
    model = mixtral()
    before = [(name, id(module)) for name, module in model.named_modules()]
    with pytest.raises(ValueError, match=message):
        lorafam.adapt(model, AdapterConfig(r=4, **{"target_modules": [], **settings}))
    assert [(name, id(module)) for name, module in model.named_modules()] == before


@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"method": "dora"}, {"bias": True}, {"init": "pissa"}])
def test_settings_that_parameters_do_not_have(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="target_parameters: expected method 'lora' with dropout 0"):
        AdapterConfig(target_modules=[], target_parameters=["w"], **settings)


def test_a_further_adapter_has_the_same_parameters() -> None:
    model = lorafam.adapt(mixtral(), AdapterConfig(r=4, target_modules=[], target_parameters=BOTH))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="expected the same of a further one"):
        lorafam.add_adapter(model, "b", AdapterConfig(target_modules=[], target_parameters=BOTH[:1]))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_module_beside_its_own_weight_as_a_parameter(tmp_path: Path) -> None:
    files = {
        "x": {"target_modules": [], "target_parameters": ["gate_proj.weight"]},
        "y": {"target_modules": ["gate_proj", "q_proj"]},
    }
    out = {}
    for name, settings in files.items():
        peft_file(tmp_path / name, llama(), **settings)
        out[name] = by_peft(tmp_path / name, llama())
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "x", adapter_name="x")
    theirs.load_adapter(tmp_path / "y", "y")
    model = lorafam.load_adapter(llama(), tmp_path / "x", "x")
    lorafam.load_adapter(model, tmp_path / "y", "y")
    for name in ("y", "x", "y"):
        theirs.set_adapter(name)
        lorafam.set_adapter(model, name)
        close(logits(theirs), out[name])
        close(logits(model), out[name])
    lorafam.save_adapter(model, tmp_path / "again")
    close(by_peft(tmp_path / "again", llama()), out["y"])
    with pytest.raises(ValueError, match=r"expected the method 'lora' of '.*gate_proj', got 'dora'"):
        lorafam.add_adapter(model, "z", AdapterConfig("dora", target_modules=["gate_proj"]))


@pytest.mark.parametrize("first", ["the parameter", "the module", "both at once"])
def test_a_module_with_dropout_beside_its_own_weight_is_refused_as_by_peft(first: str) -> None:
    """The update of a parameter isn't a product of tokens, of which some could be dropped."""
    own: dict[str, Any] = {"target_modules": [], "target_parameters": ["gate_proj.weight"]}
    whole: dict[str, Any] = {"target_modules": ["gate_proj", "q_proj"]}
    drop = 0.3
    if first == "both at once":
        with pytest.raises(ValueError, match="not a valid target"):
            get_peft_model(llama(), LoraConfig(**own | whole, lora_dropout=drop))
        with pytest.raises(ValueError, match="target_parameters: expected method 'lora' with dropout 0"):
            AdapterConfig(**own | whole, dropout=drop)
        return
    settings = (own, whole) if first == "the parameter" else (whole, own)
    dropouts = [drop if one is whole else 0.0 for one in settings]
    theirs = get_peft_model(llama(), LoraConfig(**settings[0], lora_dropout=dropouts[0]))
    with pytest.raises(ValueError, match=r"not a valid target|does not work with lora_dropout"):
        theirs.add_adapter("b", LoraConfig(**settings[1], lora_dropout=dropouts[1]))
    model = lorafam.adapt(llama(), AdapterConfig(**settings[0], dropout=dropouts[0]))
    before = [[name for name, _ in model.named_modules()], [p.requires_grad for p in model.parameters()]]
    told = {
        "the parameter": r"'.*\.0\.mlp\.gate_proj' has an adapter of its parameter 'weight', .* dropout 0",
        "the module": r"target_parameters: 'gate_proj\.weight' is the weight of an adapted layer",
    }
    with pytest.raises(ValueError, match=told[first]):
        lorafam.add_adapter(model, "b", AdapterConfig(**settings[1], dropout=dropouts[1]))
    assert [[name for name, _ in model.named_modules()], [p.requires_grad for p in model.parameters()]] == before
    assert logits(model).isfinite().all()
