"""Updates of experts' weights, grouped: PEFT's results, in transformers' own mixtures; and when they are PEFT's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import lorafam
from lorafam.methods import experts
from tests.interop.tiny_lm import disturb, trainable

Tensor = torch.Tensor
SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4, num_experts_per_tok=2))


def qwen() -> Any:
    more = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 16}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **more, decoder_sparse_step=1, norm_topk_prob=True))


def gpt_oss() -> Any:
    """Transposed weights with biases, a gate of its own."""
    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    return GptOssForCausalLM(GptOssConfig(**SIZES, **more))


MODELS = {"mixtral": mixtral, "qwen": qwen, "gpt_oss": gpt_oss}
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def model_of(name: str, targets: list[str] | None = None, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], target_parameters=targets or BOTH, **settings)
    model = get_peft_model(MODELS[name]().to(dtype), config)
    disturb(model)
    return model


def batch() -> Tensor:
    return torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(1))


def results(model: Any) -> dict[str, Tensor]:
    """Logits and every gradient."""
    model.zero_grad()
    output = model(input_ids=batch(), labels=batch())
    output.loss.backward()
    grads = {name: parameter.grad for name, parameter in trainable(model).items()}
    return {"logits": output.logits.detach(), **grads}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []
    real = experts.expert_product
    monkeypatch.setattr(experts, "expert_product", lambda *args: (made.append("product"), real(*args))[1])
    return made


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}], ids=str)
@pytest.mark.parametrize("targets", [None, BOTH[:1], BOTH[1:]], ids=["both", "gate_up", "down"])
@pytest.mark.parametrize("name", MODELS)
def test_as_peft_has_it(name: str, targets: list[str] | None, settings: dict[str, Any], calls: list[str]) -> None:
    model = model_of(name, targets, **settings)
    expected = results(model)
    report = lorafam.accelerate(model)
    found = results(model)
    assert calls == ["product"] * 2
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5)
    rows = [row for row in report.rows if "experts" in row.name]
    assert {row.path for row in rows} == {"fused"}
    assert "updates grouped over experts" in rows[0].reason
    assert lorafam.explain(_wrapper(model), 3).reason == rows[0].reason
    lorafam.decelerate(model)
    again = results(model)
    assert all(torch.equal(again[key], value) for key, value in expected.items())


def test_small_updates_are_not_rounded_into_bf16_weights() -> None:
    """PEFT forms W + s B A in bf16: an update below W's last bit is gone; here it reaches the output."""
    model = model_of("qwen", dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            if "lora_B" in name and "experts" in name:
                parameter.mul_(1e-2)
    reference = model_of("qwen")
    reference.load_state_dict({name: value.float() for name, value in model.state_dict().items()})
    exact = results(reference)
    eager = results(model)
    lorafam.accelerate(model)
    ours = results(model)
    for key in exact:
        if "experts" in key:
            errors = [(side[key].float() - exact[key]).norm().item() for side in (ours, eager)]
            assert errors[0] <= 1.5 * errors[1], key


def test_generation(calls: list[str]) -> None:
    model = model_of("mixtral").eval()
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    prompt = {"input_ids": batch(), "attention_mask": torch.ones_like(batch())}
    expected = model.generate(**prompt, **settings)
    lorafam.accelerate(model)
    assert torch.equal(model.generate(**prompt, **settings), expected)
    assert len(calls) == 12


def _wrapper(model: Any) -> Any:
    return model.base_model.model.model.layers[0].mlp.experts


def _hook(model: Any) -> None:
    _wrapper(model).lora_A["default"].register_forward_pre_hook(lambda *_: None)


def _train(model: Any) -> None:
    _wrapper(model).get_base_layer().down_proj.requires_grad_()


def _disable(model: Any) -> None:
    model.base_model.disable_adapter_layers()


def _merge(model: Any) -> None:
    _wrapper(model).merge()


def _second(model: Any) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=BOTH)
    model.add_adapter("other", config)
    model.base_model.set_adapter(["default", "other"])


@pytest.mark.parametrize(
    ("change", "reason", "products"),
    [
        (_hook, "hooks on the adapter's modules", 0),
        (_train, "the experts' weights are trained", 0),
        (_disable, "the adapters are disabled", 0),
        # the wrapper inside goes on by itself
        (_merge, "default is merged", 2),
        (_second, "2 active adapters", 0),
    ],
)
def test_what_goes_to_peft(change: Any, reason: str, products: int, calls: list[str]) -> None:
    plain, fast = model_of("mixtral"), model_of("mixtral")
    for model in (plain, fast):
        change(model)
    report = lorafam.accelerate(fast)
    (row,) = (row for row in report.rows if row.name.endswith("mlp.experts"))
    assert row.path == "PEFT"
    assert reason in row.reason
    torch.testing.assert_close(fast(batch()).logits, plain(batch()).logits, rtol=1e-4, atol=1e-5)
    assert len(calls) == products


@pytest.mark.parametrize(
    "unsaid",
    [
        ["has_gate", "has_post_expert_norm", "_is_expert_parallel"],
        ["has_post_expert_norm", "_is_expert_parallel"],
    ],
    ids=["as in transformers 5.0", "as in transformers 5.17"],
)
def test_modules_that_say_less_are_recognised(unsaid: list[str], calls: list[str]) -> None:
    model = model_of("mixtral")
    expected = model(batch()).logits
    experts_module = _wrapper(model).get_base_layer()
    for name in unsaid:
        vars(experts_module).pop(name, None)
    lorafam.accelerate(model)
    torch.testing.assert_close(model(batch()).logits, expected, rtol=1e-4, atol=1e-5)
    assert calls == ["product"] * 2


@pytest.mark.parametrize("unsaid", ["num_experts", "has_bias", "is_transposed"])
def test_modules_that_say_nothing_are_pefts(unsaid: str) -> None:
    model = model_of("mixtral")
    delattr(_wrapper(model).get_base_layer(), unsaid)
    (row,) = (row for row in lorafam.accelerate(model).rows if row.name.endswith("mlp.experts"))
    assert (row.path, "doesn't say how its experts compute" in row.reason) == ("PEFT", True)


def test_experts_on_other_devices_are_pefts() -> None:
    model = model_of("mixtral")
    _wrapper(model).get_base_layer()._is_expert_parallel = True
    (row,) = (row for row in lorafam.accelerate(model).rows if row.name.endswith("mlp.experts"))
    assert (row.path, "experts on other devices" in row.reason) == ("PEFT", True)


def test_under_autocast_it_is_pefts(calls: list[str]) -> None:
    model = model_of("mixtral")
    lorafam.accelerate(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch())
    assert calls == []
