"""Any Trainer: trains an adapted model, checkpoints the adapter alone, resumes to the same bits, loads the best."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)

import lorafam
from lorafam.model import adapter_layers
from tests.model.tiny import disturb, tokens

STEPS = 4
TARGETS = ["q_proj", "down_proj"]
SCHEDULE = {"init_rank": 4, "target_rank": 2, "total_steps": STEPS, "warmup_steps": 0, "final_steps": 1, "interval": 1}


def tiny_model() -> LlamaForCausalLM:
    """Of sizes that bitsandbytes can repack in evaluation."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=50, num_hidden_layers=2, max_position_embeddings=64, **sizes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    return path


def base(way: str, folder: Path) -> Any:
    if way == "loaded in 4 bits":
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=torch.float32)
        for module in model.modules():
            # in evaluation it would round the scales, in place
            module.support_avx512bf16_for_cpu = False
        return model
    return tiny_model()


def made(way: str, folder: Path, seed: int = 5, **settings: Any) -> Any:
    """Of the same values for the same seed."""
    model = base(way, folder)
    settings = {"r": 4, "dropout": 0.25, "target_modules": TARGETS} | settings
    quantize = "nf4" if way == "nf4" else None
    torch.manual_seed(seed)
    return lorafam.adapt(model, lorafam.AdapterConfig(quantize=quantize, **settings))


def arguments(output: Path, **changes: Any) -> TrainingArguments:
    values: dict[str, Any] = {"max_steps": STEPS, "save_steps": 2, "learning_rate": 1e-2, "seed": 1} | changes
    return TrainingArguments(
        str(output),
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **values,
    )


def data() -> list[dict[str, torch.Tensor]]:
    return [{"input_ids": row, "labels": row} for row in tokens(8)]


def trainer_of(model: Any, output: Path, callbacks: Any = None, **changes: Any) -> Trainer:
    return Trainer(model, arguments(output, **changes), train_dataset=data(), eval_dataset=data(), callbacks=callbacks)


def first_is_best(trainer: Trainer) -> Trainer:
    trainer.evaluate = lambda **_: {"eval_loss": trainer.state.global_step}  # type: ignore[method-assign]
    return trainer


BEST: dict[str, Any] = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}


def allocation(model: Any, compact: bool = True) -> list[Any]:
    """AdaLoRA's callback, for a model that needs one."""
    if any(layer.method == "adalora" for layer in adapter_layers(model).values()):
        return [lorafam.AdaLoraCallback(lorafam.RankAllocator(model, **SCHEDULE), compact=compact)]
    return []


def same(one: Any, other: Any) -> None:
    theirs = other.state_dict()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


WAYS = ["dense", "nf4", "loaded in 4 bits"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["lora", "dora", "adalora"])
def test_checkpoints_are_the_adapter_and_resume_to_the_same_bits(
    way: str, method: str, folder: Path, tmp_path: Path
) -> None:
    whole = made(way, folder, method=method)
    trainer_of(whole, tmp_path / "whole", allocation(whole)).train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    for step in (2, STEPS):
        written = {path.name for path in (tmp_path / "whole" / f"checkpoint-{step}").iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json"} <= written
        assert not {"model.safetensors", "pytorch_model.bin", "config.json"} & written
    for name in ("adapter_model.safetensors", "trainable.safetensors"):
        with safe_open(checkpoint / name, "pt") as file:
            assert len(file.keys()) == 4 * {"lora": 2, "dora": 3, "adalora": 3}[method]
    again = made(way, folder, seed=6, method=method)
    # another folder than the first run's
    trainer_of(again, tmp_path / "again", allocation(again)).train(resume_from_checkpoint=str(checkpoint))
    same(again, whole)
    theirs = PeftModel.from_pretrained(base(way, folder), tmp_path / "whole" / f"checkpoint-{STEPS}").eval()
    if way != "nf4":
        torch.testing.assert_close(theirs(tokens()).logits, whole.eval()(tokens()).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_the_best_checkpoint_is_loaded_at_the_end_and_trains_on(
    way: str, method: str, folder: Path, tmp_path: Path
) -> None:
    """The first one, which has more ranks than the model at the end."""
    model = made(way, folder, method=method)
    trainer = first_is_best(trainer_of(model, tmp_path, allocation(model), **BEST))
    trainer.train()
    assert trainer.state.best_global_step == 1
    twin = made(way, folder, method=method)
    lorafam.load_adapter(twin, tmp_path / "checkpoint-1")
    same(model, twin)
    trainer.args.load_best_model_at_end = False
    trainer.train()
    assert all(not torch.equal(layer.B, adapter_layers(twin)[path].B) for path, layer in adapter_layers(model).items())
    if method == "adalora":
        assert sum(layer.A.shape[0] for layer in adapter_layers(model).values()) == 8


@pytest.mark.parametrize("compact", [True, False])
def test_adalora_trains_twice(compact: bool, folder: Path, tmp_path: Path) -> None:
    model = made("dense", folder, method="adalora")
    trainer = trainer_of(model, tmp_path, allocation(model, compact))
    for _ in range(2):
        trainer.train()
        assert sum(int((layer.E != 0).sum()) for layer in adapter_layers(model).values()) == 8
        lorafam.save_adapter(model, tmp_path / "adapter")
        theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "adapter").eval()
        torch.testing.assert_close(theirs(tokens()).logits, model.eval()(tokens()).logits, rtol=1e-4, atol=1e-5)
    # and from a checkpoint with more ranks, in the same process
    set_seed(1)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    again = made("dense", folder, method="adalora")
    trainer_of(again, tmp_path / "again", allocation(again, compact)).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    same(again, model)


def test_training_twice_is_as_with_peft(folder: Path, tmp_path: Path) -> None:
    ours = made("dense", folder, dropout=0.0)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS)
    lorafam.save_adapter(ours, tmp_path / "start")
    theirs = PeftModel.from_pretrained(tiny_model(), tmp_path / "start", is_trainable=True)
    assert config.r == theirs.peft_config["default"].r
    logged = []
    for model in (ours, theirs):
        trainer = trainer_of(model, tmp_path / "out")
        trainer.train()
        trainer.train()
        logged.append([record["loss"] for record in trainer.state.log_history if "loss" in record])
    assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    torch.testing.assert_close(ours.eval()(tokens()).logits, theirs.eval()(tokens()).logits, rtol=1e-3, atol=1e-4)


def unfrozen(model: Any) -> Any:
    """Parts that an adapter's file doesn't have: a norm is trained too, A of one layer isn't."""
    model.model.norm.weight.requires_grad_()
    model.model.layers[0].self_attn.q_proj.A.requires_grad_(False)
    return model


def second(model: Any) -> Any:
    lorafam.add_adapter(model, "b", lorafam.AdapterConfig(r=2, target_modules=["k_proj", "down_proj"]))
    lorafam.set_adapter(model, "b")
    return model


OTHERS: dict[str, tuple[dict[str, Any], Callable[[Any], Any]]] = {
    "unfrozen": ({}, unfrozen),
    "pissa": ({"init": "pissa"}, lambda model: model),
    "loftq": ({"init": "loftq"}, lambda model: model),
    "second": ({}, second),
    "whole modules": ({"modules_to_save": ["norm"]}, lambda model: model),
    "biases": ({"base_bias": "all"}, lambda model: model),
    "tokens": ({"trainable_token_indices": [1, 5, 7]}, lambda model: model),
    "bf16": ({}, lambda model: model.to(torch.bfloat16)),
}


@pytest.mark.parametrize("what", OTHERS)
def test_everything_trained_is_resumed(what: str, folder: Path, tmp_path: Path) -> None:
    settings, change = OTHERS[what]
    way = "nf4" if what == "loftq" else "dense"
    ends = []
    for seed, resume in ((5, None), (6, str(tmp_path / "checkpoint-2"))):
        model = change(made(way, folder, seed, **settings))
        trainer_of(model, tmp_path).train(resume_from_checkpoint=resume)
        ends.append(model)
    same(*ends)


class Wrapped(nn.Module):
    """A model that isn't one of transformers', around one that is."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return self.inner(input_ids=input_ids, labels=labels)


@pytest.mark.parametrize("adapted", ["inner", "outer"])
def test_a_module_of_ones_own(adapted: str, folder: Path, tmp_path: Path) -> None:
    ends = []
    for seed, resume in ((5, None), (6, str(tmp_path / "checkpoint-2"))):
        torch.manual_seed(seed)
        model = Wrapped(tiny_model())
        config = lorafam.AdapterConfig(r=4, target_modules=TARGETS)
        lorafam.adapt(model.inner if adapted == "inner" else model, config)
        trainer_of(model, tmp_path).train(resume_from_checkpoint=resume)
        ends.append(model)
    same(*ends)
    written = {path.name for path in (tmp_path / "checkpoint-2").iterdir()}
    assert "model.safetensors" not in written
    assert {"adapter_model.safetensors", "trainable.safetensors"} <= written


def test_pefts_checkpoint_is_resumed_too(folder: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, lora_alpha=16, target_modules=TARGETS)
    torch.manual_seed(5)
    theirs = get_peft_model(tiny_model(), config)
    trainer_of(theirs, tmp_path).train()
    ours = made("dense", folder, dropout=0.0)
    trainer_of(ours, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(ours.eval()(tokens()).logits, theirs.eval()(tokens()).logits, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    trainer_of(made("dense", folder), tmp_path).train()
    other = made("dense", folder, r=2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"trainable\.safetensors doesn't fit the model, they differ in"):
        trainer_of(other, tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


AFTER = """
import sys, torch, lorafam
from transformers import LlamaConfig, LlamaForCausalLM
model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
    num_attention_heads=4, num_key_value_heads=2))
assert "transformers.trainer" not in sys.modules
lorafam.adapt(model, lorafam.AdapterConfig(r=4))
from transformers import Trainer, TrainingArguments
data = [dict(input_ids=torch.arange(9), labels=torch.arange(9))]
for resume in (None, True):
    Trainer(model, TrainingArguments(sys.argv[1], max_steps=2, save_steps=1, report_to="none", use_cpu=True,
        disable_tqdm=True), train_dataset=data).train(resume_from_checkpoint=resume)
"""


def test_trainer_may_be_imported_later(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", AFTER, str(tmp_path)], check=True)
    assert not (tmp_path / "checkpoint-2" / "model.safetensors").exists()
    assert (tmp_path / "checkpoint-2" / "trainable.safetensors").exists()


# PEFT's AdaLoRA


def adalora() -> AdaLoraConfig:
    schedule = {"init_r": 4, "target_r": 2, "tinit": 0, "tfinal": 1, "deltaT": 1, "total_step": STEPS}
    kind = {"target_modules": TARGETS, "orth_reg_weight": 0.5, "task_type": "CAUSAL_LM"}
    return AdaLoraConfig(**schedule, **kind)


def ranks(model: Any) -> list[int]:
    return [int((p != 0).sum()) for name, p in model.named_parameters() if "lora_E" in name]


@pytest.mark.parametrize("accelerated", [False, True])
def test_pefts_adalora_loads_the_best_resumes_and_trains_again(accelerated: bool, tmp_path: Path) -> None:
    model = get_peft_model(tiny_model(), adalora())
    disturb(model)
    if accelerated:
        lorafam.accelerate(model)
    trainer = first_is_best(trainer_of(model, tmp_path, [lorafam.AdaLoraCallback()], **BEST))
    trainer.train()
    assert trainer.state.best_global_step == 1
    twin = PeftModel.from_pretrained(tiny_model(), tmp_path / "checkpoint-1")
    for (name, mine), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    trainer.args.load_best_model_at_end = False
    trainer.train()
    assert sum(ranks(model)) == 8
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sum(ranks(model)) == 8


def injected(how: str) -> Any:
    model: Any = tiny_model()
    torch.manual_seed(4)
    if how == "add_adapter":
        # transformers' own, which asks for another version of PEFT than this
        inject_adapter_in_model(adalora(), model)
        model._hf_peft_config_loaded = True
    elif how == "inject_adapter_in_model":
        inject_adapter_in_model(adalora(), model)
    else:
        model = get_peft_model(model, adalora())
    disturb(model)
    return model


@pytest.mark.parametrize("accelerated", [False, True])
@pytest.mark.parametrize("how", ["add_adapter", "inject_adapter_in_model"])
def test_adalora_without_a_peft_model_allocates(how: str, accelerated: bool, tmp_path: Path) -> None:
    """Exactly as in a PeftModel."""
    ends = []
    for one in (how, "get_peft_model"):
        model = injected(one)
        if accelerated:
            lorafam.accelerate(model)
        assert sum(ranks(model)) == 16
        trainer_of(model, tmp_path / one, [lorafam.AdaLoraCallback()], save_strategy="no").train()
        assert sum(ranks(model)) == 8
        ends.append([parameter for name, parameter in model.named_parameters() if "lora_" in name])
    for mine, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


# what else transformers asks


def test_save_pretrained_writes_the_adapter(folder: Path, tmp_path: Path) -> None:
    model = made("nf4", folder)
    disturb(model)
    second(model)
    model.save_pretrained(tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "b/adapter_config.json",
        "b/adapter_model.safetensors",
    ]
    lorafam.set_adapter(model, "default")
    twin = lorafam.load_adapter(made("nf4", folder, 6), tmp_path)
    torch.testing.assert_close(twin.eval()(tokens()).logits, model.eval()(tokens()).logits)


@pytest.mark.parametrize("way", WAYS)
def test_save_pretrained_writes_the_state_that_it_is_given(way: str, folder: Path, tmp_path: Path) -> None:
    """Gathered from several processes, or averaged: PEFT writes that too."""
    model = made(way, folder)
    disturb(model)
    state = copy.deepcopy(model.state_dict())
    wanted = model.eval()(tokens()).logits
    disturb(model, 4)
    now = model(tokens()).logits
    model.save_pretrained(tmp_path / "given", state_dict=state)
    model.save_pretrained(tmp_path / "live", state_dict=None)
    assert torch.equal(model(tokens()).logits, now)
    for name, out in (("given", wanted), ("live", now)):
        twin = lorafam.load_adapter(made(way, folder, 6), tmp_path / name)
        torch.testing.assert_close(twin.eval()(tokens()).logits, out)
    lacking = next(name for name in state if ".adapters." in name)
    with pytest.raises(ValueError, match=f"state_dict: expected '{lacking}' of shape .*, got none"):
        model.save_pretrained(tmp_path / "none", state_dict={k: v for k, v in state.items() if k != lacking})
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("repo", [{}, {"repo_id": "us/other", "private": True}])
def test_what_is_pushed_to_the_hub_is_the_adapter(
    repo: dict[str, Any], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made("nf4", folder)
    pushed: list[Any] = []

    def upload(own: Any, repo_id: str, **given: Any) -> None:
        own.save_pretrained(tmp_path / "pushed")
        pushed.append((repo_id, given))

    monkeypatch.setattr(type(model), "push_to_hub", upload)
    model.save_pretrained(tmp_path / "mine", push_to_hub=True, safe_serialization=True, **repo)
    assert pushed == [("us/other", {"private": True}) if repo else ("mine", {})]
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "pushed" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()


@pytest.mark.parametrize("copied", [lambda model: model, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_transformers_methods_know_the_adapters(copied: Callable[[Any], Any], folder: Path, tmp_path: Path) -> None:
    original = made("dense", folder)
    disturb(original)
    model = copied(original).eval()
    adapted, bare = model(tokens()).logits, tiny_model()(tokens()).logits
    assert model.active_adapters() == ["default"]
    model.disable_adapters()
    torch.testing.assert_close(model(tokens()).logits, bare)
    model.enable_adapters()
    torch.testing.assert_close(model(tokens()).logits, adapted)
    with pytest.raises(KeyError, match="name"):
        model.set_adapter("b")
    model.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    lorafam.merge_and_unload(model)
    assert not model._hf_peft_config_loaded
    assert model.disable_adapters.__func__ is type(original).disable_adapters
    model.save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(merged(tokens()).logits, adapted, rtol=1e-4, atol=1e-5)


def test_what_a_state_dict_holds_is_each_layers_own(folder: Path, tmp_path: Path) -> None:
    """safetensors refuses shared tensors: all 4-bit layers read one table of levels."""
    model = made("nf4", folder)
    disturb(model)
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    twin = made("nf4", folder, 6)
    twin.load_state_dict(load_file(tmp_path / "whole.safetensors"))
    torch.testing.assert_close(twin.eval()(tokens()).logits, model.eval()(tokens()).logits)


def test_reentrant_checkpointing_has_gradients(folder: Path) -> None:
    model = made("dense", folder)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()(tokens(), labels=tokens()).loss.backward()
    assert all(layer.B.grad is not None for layer in adapter_layers(model).values())
